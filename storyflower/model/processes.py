"""The processes of one training, as torchrun starts them; one process is the usual case.

In: what torchrun puts into the environment.
Out: who this process is, which dialogues of a batch are its own, and sums over all processes.
Every process has the whole model. The gradient is the mean over the global batch whatever the
number of processes, because each process divides by the global batch, not by its own share. One
process, the first, writes files and logs.
Not supported: models that do not fit one device.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import distributed, nn

from storyflower.common.errors import InputError, one_line

# The first process may wait for another run's lock, or save to a slow disk, while the others wait.
TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, with gradients averaged over the processes in the backward pass."""
        if self.count == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False)

    def share(self, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Which of a batch's rows are this process's; `lengths` are the tokens of each row.

        The longest goes first, each to the process with the fewest tokens so far: with tens of
        dialogues a process the loads differ by a few tokens. A process gets none where there are
        fewer rows than processes.
        """
        if self.count == 1:
            return rows
        loads = np.zeros(self.count, np.int64)
        mine = np.zeros(len(rows), bool)
        for index in np.argsort(-lengths, kind="stable"):
            # Of equal loads the one with the lowest rank; an empty process has load 0.
            rank = int(loads.argmin())
            loads[rank] += lengths[index]
            mine[index] = rank == self.rank
        return rows[mine]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the processes, the same bits in each; in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def agree(self, numbers: list[int]) -> bool:
        """Whether every process has the same numbers; all of them must ask."""
        if self.count == 1:
            return True
        mine = torch.tensor(numbers, dtype=torch.float64)
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        both = torch.stack([mine, -mine]).to(device)
        distributed.all_reduce(both, distributed.ReduceOp.MAX)
        return torch.equal(both[0], -both[1])

    def wait(self) -> None:
        """Go on when every process has come here."""
        self.agree([])


ALONE = Ranks()


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Meet the processes that torchrun started beside this one; alone without torchrun.

    Raises InputError when there are more processes than GPUs on this host, and in the place of the
    error that follows when another process of the run has died.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    if device.type == "mps":
        raise InputError("an Apple GPU trains in one process; set launcher: python in params.yaml")
    local = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise InputError(
                f"torchrun started process {local + 1} on this host, which has "
                f"{torch.cuda.device_count()} GPUs; lower --nproc-per-node in launcher"
            )
        torch.cuda.set_device(local)
    backend = "nccl" if device.type == "cuda" else "gloo"
    ranks = Ranks(int(os.environ["RANK"]), count)
    try:
        distributed.init_process_group(backend, timeout=TIMEOUT)
        yield ranks
    except (distributed.DistError, RuntimeError) as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise InputError(
            f"process {ranks.rank + 1} of {count} lost the others ({one_line(error)}); "
            "the message of the one that ended first says why"
        ) from None
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
