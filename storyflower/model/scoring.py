"""Token arrays → the logits or the probability of every class, for every dialogue.

In: a classifier and ragged ids.
Out: arrays (dialogues, classes) in the arrays' order. Dialogues of similar length share a
batch, so that matrix products are few and large.
"""

from collections.abc import Callable

import numpy as np
import torch

from storyflower.interim.tokens import TokenArrays
from storyflower.model.batch import make_batch
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.device import Placement
from storyflower.model.processes import ALONE, Ranks

# Tokens scored at once; affects memory and speed, not the result. A processor is fastest while a
# layer's states stay in its caches: on two cores with AMX, 16,384 took 1.2 to 2 times as long.
BATCH_TOKENS = 16384
CPU_BATCH_TOKENS = 2048


def probabilities(
    model: EmotionClassifier,
    table: TokenArrays,
    placement: Placement,
    ranks: Ranks = ALONE,
    *,
    temperature: float | None = None,
) -> np.ndarray:
    """Softmax of logits / temperature, float32 (dialogues, classes); no dropout or gradients.

    Without a temperature, the logits stay as they are. With several `ranks`, each process computes
    its share of the batches, and all return the full result. Leaves the model in evaluation mode.
    """
    return scored(model, table, placement, ranks, lambda batch: softmax(batch, temperature))


def logits(model: EmotionClassifier, table: TokenArrays, placement: Placement) -> np.ndarray:
    """What the linear layer says, float32 (dialogues, classes); no dropout or gradients."""
    return scored(model, table, placement, ALONE, lambda batch: batch)


def softmax(logits: torch.Tensor, temperature: float | None = None) -> torch.Tensor:
    """Probabilities (rows, classes) of float32 logits, divided by the temperature, if any."""
    return torch.softmax(logits if temperature is None else logits / temperature, dim=-1)


def scored(
    model: EmotionClassifier,
    table: TokenArrays,
    placement: Placement,
    ranks: Ranks,
    finish: Callable[[torch.Tensor], torch.Tensor],
) -> np.ndarray:
    """`finish` of the logits of each batch, float32 (dialogues, classes), in the table's order."""
    model.eval()
    order = np.argsort(table.lengths, kind="stable")
    total = np.cumsum(table.lengths[order])  # running total of tokens, including each dialogue
    result = np.zeros((len(table), model.linear.out_features), dtype=np.float32)
    most = CPU_BATCH_TOKENS if placement.device.type == "cpu" else BATCH_TOKENS
    start = turn = 0
    while start < len(order):
        before = total[start - 1] if start else 0
        stop = max(int(np.searchsorted(total, before + most, side="right")), start + 1)
        if turn % ranks.count == ranks.rank:
            rows = order[start:stop]
            batch = make_batch(table, rows, placement.device)
            with torch.inference_mode(), placement.autocast():
                logits = model(batch)
            result[batch.rows] = finish(logits.float()).cpu().numpy()
        start, turn = stop, turn + 1
    if ranks.count > 1:  # each row is 0 in all processes but one, so the sum is that row
        result = ranks.sum(torch.from_numpy(result).to(placement.device)).cpu().numpy()
    return result


def cross_entropy(probabilities: np.ndarray, actual: np.ndarray) -> float:
    """Mean of -ln p(actual class), in nats per row."""
    chosen = probabilities[np.arange(len(actual)), actual].astype(np.float64)
    return float(-np.log(np.maximum(chosen, 1e-38)).mean())  # about float32's smallest
