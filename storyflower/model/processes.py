"""The processes of one training, as torchrun starts them; usually there is only one.

In: torchrun's environment variables.
Out: this process's rank, its share of each batch's dialogues, and sums over all processes. Every
process has the whole model. The gradient is the mean over the global batch for any number of
processes, because each process divides by the size of the global batch, not of its own share. Only
the first process writes files and logs.
Not supported: models that do not fit on one device.
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
from storyflower.model.forward import UNPADDED

# The other processes wait while the first one waits for another run's lock or saves to a slow disk.
TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, with gradients averaged over the processes in the backward pass."""
        if self.count == 1:
            return model
        # Longformer's weights of global attention, for example, get no gradient.
        padded = model.encoder.config.model_type not in UNPADDED
        return nn.parallel.DistributedDataParallel(
            model, forward_sync_buffers=False, find_unused_parameters=padded
        )

    def share(self, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """This process's share of a batch's rows; `lengths` are the tokens of each row.

        Rows are assigned longest first, each to the process with the fewest tokens so far. With
        tens of dialogues per process, the loads differ by only a few tokens. With fewer rows than
        processes, some processes get none.
        """
        if self.count == 1:
            return rows
        loads = np.zeros(self.count, np.int64)
        mine = np.zeros(len(rows), bool)
        for index in np.argsort(-lengths, kind="stable"):
            # In a tie, the lowest rank; a process without rows has load 0.
            rank = int(loads.argmin())
            loads[rank] += lengths[index]
            mine[index] = rank == self.rank
        return rows[mine]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the processes, in place; every process gets exactly the same bits."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def agree(self, numbers: list[int]) -> bool:
        """Whether every process has the same numbers; every process must call this."""
        if self.count == 1:
            return True
        mine = torch.tensor(numbers, dtype=torch.float64)
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        both = torch.stack([mine, -mine]).to(device)
        distributed.all_reduce(both, distributed.ReduceOp.MAX)
        return torch.equal(both[0], -both[1])

    def wait(self) -> None:
        """Wait until every process has called this."""
        self.agree([])


ALONE = Ranks()


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the other processes that torchrun started; without torchrun, this process is alone.

    Raises InputError for several processes on an Apple GPU, for more processes than GPUs on this
    host, and instead of the error that follows when another process of the run has died.
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
