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
    history: list[Epoch] = field(default_factory=list)  # of the finished epochs
    best: dict[str, torch.Tensor] = field(default_factory=dict)  # weights of the epoch to keep

    def moment(self) -> str:
        return f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"epoch {self.epoch}"

    def keep(self) -> None:
        """Copy the current weights to `best`, on the CPU."""
        self.best = {
            name: value.detach().to("cpu", copy=True)
            for name, value in self.model.state_dict().items()
        }

    def next_epoch(self) -> None:
        self.epoch, self.step, self.seen, self.seconds = self.epoch + 1, 0, 0, 0.0
        self.loss_sum.zero_()
        self.correct.zero_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors of the state, on the CPU."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {"sum.loss": self.loss_sum, "sum.correct": self.correct}
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def numbers(self) -> dict[str, Any]:
        """The rest of the state, as values for JSON."""
        where = {key: getattr(self, key) for key in ("epoch", "step", "seen", "seconds")}
        history = [asdict(row) for row in self.history]
        return {**where, "history": history, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """Restore the state from which `tensors` and `numbers` were taken."""
        groups: dict[str, dict[str, torch.Tensor]] = {"model": {}, "sum": {}, "best": {}}
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
        self.best = groups["best"]
        self.loss_sum.copy_(groups["sum"]["loss"])
        self.correct.copy_(groups["sum"]["correct"])
        self.epoch, self.step, self.seen = (numbers[key] for key in ("epoch", "step", "seen"))
        self.seconds = numbers["seconds"]
        self.history[:] = [Epoch(**row) for row in numbers["history"]]
