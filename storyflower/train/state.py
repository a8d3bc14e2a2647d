"""Everything that the training loop changes, as tensors and numbers for a checkpoint."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from storyflower.interim.history import Epoch


@dataclass
class State:
    """Everything that the loop changes, and its current position."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss_sum: torch.Tensor  # () sum over the dialogues of this epoch so far, on the device
    correct: torch.Tensor  # () int64, the number of correct predictions, likewise
    epoch: int = 0  # from 0
    step: int = 0  # steps of this epoch that are done
    seen: int = 0  # dialogues of this epoch trained on so far
    seconds: float = 0.0  # of training in this epoch
    micro_batch: int | None = None  # most dialogues computed at once; None: all of a step
    history: list[Epoch] = field(default_factory=list)  # of the finished epochs
    # On the CPU: the weights of the best epoch, or the sum of the weights of the last epochs
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    def moment(self) -> str:
        return f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"epoch {self.epoch}"

    def keep(self) -> None:
        """Copy the current weights to `kept`."""
        self.kept = {
            name: value.detach().to("cpu", copy=True)
            for name, value in self.model.state_dict().items()
        }

    def add_to_kept(self) -> None:
        """Add the current weights, float32, to `kept`."""
        if not self.kept:
            return self.keep()
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.kept[name] += value.detach().cpu()

    def take_kept(self, count: int) -> None:
        """Give the model what is kept, which is the sum of the weights of `count` epochs."""
        self.model.load_state_dict(
            {
                name: value / count if value.is_floating_point() else value
                for name, value in self.kept.items()
            }
        )

    def next_epoch(self) -> None:
        self.epoch, self.step, self.seen, self.seconds = self.epoch + 1, 0, 0, 0.0
        self.loss_sum.zero_()
        self.correct.zero_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors of the state, on the CPU."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        tensors |= {f"kept.{name}": value for name, value in self.kept.items()}
        tensors |= {"sum.loss": self.loss_sum, "sum.correct": self.correct}
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def numbers(self) -> dict[str, Any]:
        """The rest of the state, as values for JSON."""
        names = ("epoch", "step", "seen", "seconds", "micro_batch")
        where = {key: getattr(self, key) for key in names}
        history = [asdict(row) for row in self.history]
        return {**where, "history": history, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """Restore the state from which `tensors` and `numbers` were taken."""
        groups: dict[str, dict[str, torch.Tensor]] = {"model": {}, "sum": {}, "kept": {}}
        updates: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, rest = rest.partition(".")
                updates.setdefault(int(index), {})[rest] = value
            else:
                groups[kind][rest] = value
        self.model.load_state_dict(groups["model"])
        # The groups' settings come from the params; the loop sets the rate at each step.
        settings = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": updates, "param_groups": settings})
        self.scaler.load_state_dict(numbers["scaler"])
        self.kept = groups["kept"]
        self.loss_sum.copy_(groups["sum"]["loss"])
        self.correct.copy_(groups["sum"]["correct"])
        self.epoch, self.step, self.seen = (numbers[key] for key in ("epoch", "step", "seen"))
        self.seconds, self.micro_batch = numbers["seconds"], numbers["micro_batch"]
        self.history[:] = [Epoch(**row) for row in numbers["history"]]
