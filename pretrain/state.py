"""What the pretraining loop changes, as a checkpoint holds it, and the row that an epoch leaves."""

from dataclasses import dataclass, field
from typing import Any

import torch

from storyflower.train.state import State


@dataclass(frozen=True)
class PretrainingEpoch:
    """What an epoch did; losses are means in nats."""

    epoch: int  # from 1
    steps: int
    tokens: int  # of the texts trained on, [CLS] and [SEP] included
    seconds: float  # wall time of the steps, scoring not included
    loss: float  # over the hidden tokens, weights moving
    accuracy: float  # hidden tokens that were found / hidden tokens, likewise
    label_loss: float | None  # over the labelled texts; None where there is none
    held_out_loss: float  # these three over the texts held out, after the epoch
    held_out_accuracy: float
    held_out_label_loss: float | None

    def __str__(self) -> str:
        return (
            f"{in_words(self.loss, self.label_loss)}; on texts held out "
            f"{in_words(self.held_out_loss, self.held_out_label_loss)}, accuracy "
            f"{self.held_out_accuracy:.4f}; {self.seconds:.0f} s"
        )


def in_words(loss: float, label_loss: float | None) -> str:
    return f"loss {loss:.4f}" + ("" if label_loss is None else f", label loss {label_loss:.4f}")


@dataclass
class PretrainingState(State):
    """State counts hidden tokens here; the labelled texts come to that."""

    steps_per_epoch: int = field(kw_only=True)
    label_loss_sum: torch.Tensor = field(kw_only=True)  # () over the labelled texts of this epoch
    labelled: int = 0  # texts of this epoch that were trained on and have a label
    history: list[PretrainingEpoch] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Steps of all epochs that are done."""
        return self.epoch * self.steps_per_epoch + self.step

    def losses(self) -> tuple[float, float | None]:
        """Mean losses of this epoch so far, as PretrainingEpoch has them; waits for the device."""
        label_loss = self.label_loss_sum.item() / self.labelled if self.labelled else None
        return self.loss_sum.item() / self.seen, label_loss

    def next_epoch(self) -> None:
        super().next_epoch()
        self.labelled = 0
        self.label_loss_sum.zero_()

    def tensors(self) -> dict[str, torch.Tensor]:
        return {**super().tensors(), "sum.label_loss": self.label_loss_sum.detach().cpu()}

    def numbers(self) -> dict[str, Any]:
        return {**super().numbers(), "labelled": self.labelled}

    def restore(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        super().restore(tensors, {**numbers, "history": []})  # its rows are of another kind
        self.label_loss_sum.copy_(tensors["sum.label_loss"])
        self.labelled = numbers["labelled"]
        self.history[:] = [PretrainingEpoch(**row) for row in numbers["history"]]
