"""The gradients of one step, a part of its dialogues at a time where memory is short.

In: the rows of a step, and how many of them the device holds at once.
Out: their gradients, added up in .grad, and their sums. With dropout off, and the same tokens
hidden, they are the whole batch's but for rounding, since every part is divided by the whole
batch's weight. If a device runs out of memory, the parts are halved, the step starts again, and the
smaller parts stay: the state remembers them, so a resumed training goes on with them.
Not supported: halving with several processes, of which the others would wait for this one's sums.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from storyflower.common.errors import InputError, one_line
from storyflower.interim.tokens import TokenArrays
from storyflower.model.batch import Batch
from storyflower.model.device import Placement
from storyflower.model.forward import UNPADDED
from storyflower.model.processes import Ranks
from storyflower.train.cuda_graphs import Compute, Replayed
from storyflower.train.loss import Loss
from storyflower.train.state import State


def split(rows: np.ndarray, lengths: np.ndarray, most: int | None) -> list[np.ndarray]:
    """Rows in as few parts of at most `most` as there can be, with about as many tokens in each.

    `lengths` are the tokens of each row. Longest first, each row goes to the part with the fewest
    tokens that is not full; in a tie, to the first. Rows keep their order within a part.
    """
    if most is None or len(rows) <= most:
        return [rows]
    count = -(-len(rows) // most)
    loads, sizes = np.zeros(count, np.int64), np.zeros(count, np.int64)
    part = np.empty(len(rows), np.int64)
    for index in np.argsort(-lengths, kind="stable"):
        free = np.flatnonzero(sizes < most)
        part[index] = chosen = free[loads[free].argmin()]
        loads[chosen] += lengths[index]
        sizes[chosen] += 1
    return [rows[part == number] for number in range(count)]


class Gradients:
    """Computes a step's gradients; a call replaces those of the step before.

    `load` makes a batch of some rows of `train`, and `seed` seeds dropout for the step at hand.
    """

    def __init__(
        self,
        state: State,
        *,
        train: TokenArrays,
        load: Callable[[np.ndarray], Batch],
        seed: Callable[[], None],
        loss: Loss,
        placement: Placement,
        ranks: Ranks,
    ):
        self.state, self.ranks = state, ranks
        self.train, self.load, self.seed = train, load, seed
        self.model = ranks.wrap(state.model)
        self.parameters = list(state.model.parameters())
        self.plain = make_backward(self.model, loss, state.scaler, placement, ranks)
        self.compute = self.plain
        if can_record(state, placement, ranks):
            self.compute = Replayed(self.plain, self.parameters)

    def __call__(self, rows: np.ndarray, weight: torch.Tensor) -> torch.Tensor:
        """This process's sums over its rows, float32 (3,), as make_backward gives them.

        Raises InputError if a single dialogue is too much for the device's memory.
        """
        lengths = self.train.offsets[rows + 1] - self.train.offsets[rows]
        while True:
            parts = split(rows, lengths, self.state.micro_batch)
            try:
                return self.add_up(parts, weight)
            except torch.OutOfMemoryError as error:
                reason = one_line(error, limit=80)
            # Out of the handler, whose error holds on to the tensors of the failed attempt
            if self.compute is not self.plain:
                self.drop_graphs(reason)  # their memory may be what the step lacks
            else:
                self.halve(max(map(len, parts)), reason)

    def add_up(self, parts: list[np.ndarray], weight: torch.Tensor) -> torch.Tensor:
        self.clear()
        self.seed()
        sums = torch.zeros(3, device=weight.device)
        for number, part in enumerate(parts, start=1):
            # Processes exchange their gradients once, with those of the last part.
            waits = number < len(parts) and self.ranks.count > 1
            with self.model.no_sync() if waits else nullcontext():
                sums += self.compute(self.load(part), weight)
        return sums

    def clear(self) -> None:
        if self.compute is self.plain:
            for parameter in self.parameters:
                parameter.grad = None
        else:
            self.compute.clear()

    def drop_graphs(self, reason: str) -> None:
        """Compute without recorded graphs, which keep their memory, from now on."""
        self.compute = self.plain
        self.free()
        print(
            f"note: out of memory ({reason}); training goes on without CUDA graphs",
            file=sys.stderr,
            flush=True,
        )

    def free(self) -> None:
        self.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def halve(self, size: int, reason: str) -> None:
        """Take parts of half of `size` dialogues from now on."""
        if size == 1:
            raise InputError(
                f"out of memory with a single dialogue ({reason}); lower max_len or take a smaller "
                "encoder"
            )
        if self.ranks.count > 1:
            raise InputError(
                f"process {self.ranks.rank + 1} is out of memory with {size} dialogues at once "
                f"({reason}); set micro_batch: {size // 2}"
            )
        self.state.micro_batch = size // 2
        self.free()
        print(
            f"note: out of memory with {size} dialogues at once; from here on {size // 2} at once, "
            f"and as many to a step as before (micro_batch: {size // 2})",
            file=sys.stderr,
            flush=True,
        )


def can_record(state: State, placement: Placement, ranks: Ranks) -> bool:
    """Whether a step can be a CUDA graph.

    Not with several processes: DistributedDataParallel's hooks do not work with a graph, which
    would save fewer launches per process, too. Not in parts, whose recording would spend memory
    where it is short. Not where other people's code computes the states: it may wait for the
    device.
    """
    if placement.device.type != "cuda" or ranks.count > 1 or state.micro_batch:
        return False
    return state.model.encoder.config.model_type in UNPADDED


def make_backward(
    model: nn.Module, loss: Loss, scaler: torch.amp.GradScaler, placement: Placement, ranks: Ranks
) -> Compute:
    """A function that adds the gradients of one batch to those that are there.

    It takes the batch, and what each dialogue's loss is multiplied by: 1 / (total weight of the
    global batch), or 0. It returns float32 (3,): the batch's part of the mean loss, its sum of
    plain cross-entropy, and its number of correct predictions; all are 0 if the weight is 0.
    """
    by_class = None
    if loss.weights is not None:
        by_class = torch.from_numpy(loss.weights).to(placement.device)

    def backward(batch: Batch, weight: torch.Tensor) -> torch.Tensor:
        with placement.autocast():
            logits = model(batch)  # (dialogues, classes)
        made_small, plain = loss.sums(logits.float(), batch.labels, by_class)
        made_small = made_small * weight
        # DistributedDataParallel divides the sum of the gradients by the number of processes.
        scaler.scale(made_small * ranks.count).backward()
        counts = weight > 0
        right = (logits.detach().argmax(dim=-1) == batch.labels).sum() * counts
        return torch.stack([made_small.detach(), plain * counts, right.float()])

    return backward
