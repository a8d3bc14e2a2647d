"""All that the training loop changes, as tensors and numbers that a checkpoint can hold."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from storyflower.interim.history import Epoch


@dataclass
class State:
    """All that the loop changes, and where it stands."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss_sum: torch.Tensor  # () over the dialogues of this epoch, on the device
    correct: torch.Tensor  # () int64, likewise
    epoch: int = 0  # from 0
    step: int = 0  # steps of this epoch that are done
    seen: int = 0  # dialogues of this epoch that were trained on
    seconds: float = 0.0  # of training in this epoch
    history: list[Epoch] = field(default_factory=list)  # of the epochs before

    def moment(self) -> str:
        return f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"epoch {self.epoch}"

    def next_epoch(self) -> None:
        self.epoch, self.step, self.seen, self.seconds = self.epoch + 1, 0, 0, 0.0
        self.loss_sum.zero_()
        self.correct.zero_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything of more than one number, on the CPU."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        tensors |= {"sum.loss": self.loss_sum, "sum.correct": self.correct}
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def numbers(self) -> dict[str, Any]:
        """The rest, as JSON."""
        where = {key: getattr(self, key) for key in ("epoch", "step", "seen", "seconds")}
        history = [asdict(row) for row in self.history]
        return {**where, "history": history, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """Become the state that `tensors` and `numbers` were taken of."""
        groups: dict[str, dict[str, torch.Tensor]] = {"model": {}, "sum": {}}
        updates: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, rest = rest.partition(".")
                updates.setdefault(int(index), {})[rest] = value
            else:
                groups[kind][rest] = value
        self.model.load_state_dict(groups["model"])
        # The groups' own settings are those of the params; the loop sets the rate at each step.
        settings = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": updates, "param_groups": settings})
        self.scaler.load_state_dict(numbers["scaler"])
        self.loss_sum.copy_(groups["sum"]["loss"])
        self.correct.copy_(groups["sum"]["correct"])
        self.epoch, self.step, self.seen = (numbers[key] for key in ("epoch", "step", "seen"))
        self.seconds = numbers["seconds"]
        self.history[:] = [Epoch(**row) for row in numbers["history"]]
