"""A token table → the probability of every class, for every dialogue.

Enters: a classifier and ragged ids. Leaves: probabilities (dialogues, classes) in the table's
order. Dialogues of similar length share a batch, so its products are few and large.
"""

import numpy as np
import torch

from storyflower.device import Placement
from storyflower.model import EmotionClassifier
from storyflower.tensors import TokenTable

BATCH_TOKENS = 16384  # tokens scored at once; memory, not the result, depends on it


def probabilities(model: EmotionClassifier, table: TokenTable, placement: Placement) -> np.ndarray:
    """Softmax of the logits, float32 (dialogues, classes); dropout off, no gradients kept.

    Leaves the model in evaluation mode.
    """
    model.eval()
    order = np.argsort(table.lengths, kind="stable")
    total = np.cumsum(table.lengths[order])  # tokens up to and with each
    result = np.empty((len(table), model.linear.out_features), dtype=np.float32)
    start = 0
    while start < len(order):
        before = total[start - 1] if start else 0
        stop = max(int(np.searchsorted(total, before + BATCH_TOKENS, side="right")), start + 1)
        batch = table.batch(order[start:stop]).to(placement.device)
        with torch.inference_mode(), placement.autocast():
            logits = model(batch)
        result[batch.rows] = torch.softmax(logits.float(), dim=-1).cpu().numpy()
        start = stop
    return result
