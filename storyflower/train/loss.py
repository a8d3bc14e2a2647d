"""What a training makes small: cross-entropy, with class weights and label smoothing if asked for.

In: the labels of the rows that are trained on, and the params.
Out: the loss of a batch as a sum, and the total weight to divide it by, so that the parts of a
batch add up to torch's weighted mean over the whole of it.
Not supported: labels that are not class numbers.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from storyflower.common.params import Params


@dataclass(frozen=True)
class Loss:
    """Cross-entropy as torch's: sum over the rows / `total` of their labels = reduction="mean"."""

    classes: int
    smoothing: float = 0.0  # of a label's probability, spread evenly over all classes
    weights: np.ndarray | None = None  # (classes,) float32; None: every class counts as 1

    def sums(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of logits (rows, classes): the sum to make small, and the sum of plain cross-entropy, ().

        `weights` are this loss's, on the device of the logits.
        """
        made_small = functional.cross_entropy(
            logits, labels, weight=weights, label_smoothing=self.smoothing, reduction="sum"
        )
        if self.weights is None and not self.smoothing:
            return made_small, made_small.detach()
        return made_small, functional.cross_entropy(logits.detach(), labels, reduction="sum")

    def total(self, labels: np.ndarray) -> float:
        """What a batch's sum is divided by: the weights of its labels, (rows,), added up."""
        if self.weights is None:
            return len(labels)
        return float(self.weights[labels].sum(dtype=np.float64))

    def blind(self, labels: np.ndarray) -> float:
        """The mean loss over these labels, (rows,), of the best answer that is one for all rows.

        Without weights and smoothing this is the entropy of the classes, in nats.
        """
        counts = np.bincount(labels, minlength=self.classes)
        weights = np.ones(self.classes) if self.weights is None else self.weights.astype(np.float64)
        smoothed = self.smoothing / self.classes * weights * len(labels)
        mass = (1 - self.smoothing) * counts * weights + smoothed
        mass = mass[mass > 0]
        return float(-(mass * np.log(mass / mass.sum())).sum() / (counts * weights).sum())


def make_loss(params: Params, labels: np.ndarray, classes: int) -> Loss:
    """The params' loss for a training on rows with these `labels`, (rows,)."""
    weights = balanced(labels, classes) if params.class_weights == "balanced" else None
    return Loss(classes, params.label_smoothing, weights)


def balanced(labels: np.ndarray, classes: int) -> np.ndarray:
    """rows / (classes that occur * rows of the class), float32 (classes,); 0 where it has no row.

    The same as scikit-learn's class_weight="balanced". Every class then has the same sum of
    weights, and the weights of all rows have the mean 1.
    """
    counts = np.bincount(labels, minlength=classes)
    occurs = counts > 0
    weights = np.zeros(classes, np.float32)
    weights[occurs] = len(labels) / (occurs.sum() * counts[occurs])
    return weights
