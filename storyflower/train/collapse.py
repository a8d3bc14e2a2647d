"""A training that learns nothing but how frequent the classes are, said in one line.

In: the loss of each step, and an epoch's predictions.
Out: a line on standard error. A rate that is too high for a corpus drives an encoder there within
some hundred steps, and no later epoch brings it back.
"""

import sys

import numpy as np
import torch

WINDOW = 100  # steps whose mean is compared
LATE = 200  # steps behind the warm-up, after which a training has learned something
LEARNED = 0.98  # of the entropy of the classes: above it, the mean loss is that of their shares


def note_one_class(predicted: np.ndarray, actual: np.ndarray, epoch: int, rate: float) -> None:
    """Say so where the predictions of a classifier, (dialogues,), are one class.

    Not where the labels are one class, too.
    """
    if (predicted == predicted[0]).all() and (actual != actual[0]).any():
        say(f"epoch {epoch} gives all {len(actual)} Validation dialogues one class", rate)


class LossWatch:
    """Compares the loss behind the warm-up with the entropy of the classes, once."""

    def __init__(self, labels: np.ndarray, warmup: int, rate: float):
        shares = np.unique(np.asarray(labels), return_counts=True)[1] / len(labels)
        self.entropy = float(-(shares * np.log(shares)).sum())  # nats
        self.last = warmup + LATE
        self.rate = rate
        self.losses: list[torch.Tensor] = []

    def step(self, done: int, loss: torch.Tensor) -> None:
        """Take the mean loss, (), of the step before which `done` were done; reads it once, late.

        A training that was resumed within the window is judged by what is left of it.
        """
        if self.last - WINDOW <= done < self.last:
            self.losses.append(loss.detach())
        if done == self.last - 1 and len(self.losses) >= WINDOW // 2:
            mean = torch.stack(self.losses).mean().item()
            if mean > LEARNED * self.entropy:
                say(
                    f"after {self.last} steps the loss is {mean:.3f}, as if only the shares of the "
                    f"classes were known ({self.entropy:.3f})",
                    self.rate,
                )


def say(what: str, rate: float) -> None:
    print(
        f"WARNING: {what}: nothing was learned yet; try more epochs, learning_rate {rate / 3:.1g} "
        f"(it is {rate:g}), or a higher one if the loss has never moved",
        file=sys.stderr,
        flush=True,
    )
