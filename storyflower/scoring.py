"""A token table → the probability of every class, for every dialogue.

Enters: a classifier and ragged ids. Leaves: probabilities (dialogues, classes) in the table's
order. Dialogues of similar length share a batch, so almost nothing is padding.
"""

import numpy as np
import torch

from storyflower.device import Placement
from storyflower.model import EmotionClassifier
from storyflower.tensors import TokenTable

BATCH_TOKENS = 16384  # padded tokens scored at once; memory, not the result, depends on it


def probabilities(
    model: EmotionClassifier, table: TokenTable, placement: Placement, pad_id: int
) -> np.ndarray:
    """Softmax of the logits, float32 (dialogues, classes); dropout off, no gradients kept.

    Leaves the model in evaluation mode.
    """
    model.eval()
    order = np.argsort(table.lengths, kind="stable")
    sorted_lengths = table.lengths[order]
    result = np.empty((len(table), model.linear.out_features), dtype=np.float32)
    start = 0
    while start < len(order):
        # The last dialogue of a batch is its longest: as many as fit the budget with it.
        widths = sorted_lengths[start : start + BATCH_TOKENS]
        fitting = widths * np.arange(1, len(widths) + 1) <= BATCH_TOKENS
        stop = start + max(int(fitting.sum()), 1)
        rows = order[start:stop]
        ids, mask = (torch.from_numpy(a).to(placement.device) for a in table.padded(rows, pad_id))
        with torch.inference_mode(), placement.autocast():
            logits = model(ids, mask)
        result[rows] = torch.softmax(logits.float(), dim=-1).cpu().numpy()
        start = stop
    return result
