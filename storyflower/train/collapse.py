"""Warn about a training that learns only how frequent the classes are.

In: the loss of each step, and an epoch's predictions.
Out: one line on standard error. If the learning rate is too high for a corpus, an encoder collapses
in this way within a few hundred steps, and later epochs do not repair it.
"""

import sys

import numpy as np
import torch

FEWEST = 50  # steps of a whole training, to be judged at all
WINDOW = 100  # steps; their mean loss is compared
LATE = 200  # steps after the warm-up by which a training has normally learned something
LEARNED = 0.98  # share of the blind loss; a mean loss above it means nothing was learned


def is_late(done: int, warmup: int, *, last: bool) -> bool:
    """Whether a training with `done` steps has normally learned something, or will learn no more.

    After its last epoch it is judged from FEWEST steps on: with fewer, nothing can be expected.
    """
    return done >= LATE + warmup or (last and done >= FEWEST)


def note_one_class(predicted: np.ndarray, actual: np.ndarray, epoch: int, rate: float) -> None:
    """Warn if all predictions, (dialogues,), are the same class, but the labels are not."""
    if (predicted == predicted[0]).all() and (actual != actual[0]).any():
        say(f"epoch {epoch} gives all {len(actual)} Validation dialogues one class", rate)


class LossWatch:
    """Compares the loss after the warm-up with what it is without a look at the texts, once.

    `blind` is that: the entropy of the classes, in nats, if every row counts the same (loss.py).
    """

    def __init__(self, blind: float, warmup: int, rate: float):
        self.blind = blind
        self.last = warmup + LATE
        self.rate = rate
        self.losses: list[torch.Tensor] = []

    def step(self, done: int, loss: torch.Tensor) -> None:
        """Take the mean loss, (), of the step after `done` steps; reads them all once, at the end.

        A training that was resumed within the window is judged by the rest of the window, if that
        is at least half of it.
        """
        if self.last - WINDOW <= done < self.last:
            self.losses.append(loss.detach())
        if done == self.last - 1 and len(self.losses) >= WINDOW // 2:
            mean = torch.stack(self.losses).mean().item()
            if mean > LEARNED * self.blind:
                say(
                    f"after {self.last} steps the loss is {mean:.3f}, as if only the shares of the "
                    f"classes were known ({self.blind:.3f})",
                    self.rate,
                )


def say(what: str, rate: float) -> None:
    print(
        f"WARNING: {what}: nothing was learned yet; try more epochs, learning_rate {rate / 3:.1g} "
        f"(it is {rate:g}), or a higher one if the loss has never moved",
        file=sys.stderr,
        flush=True,
    )
