"""history.csv: what each epoch of a training did."""

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from storyflower.common.files import replacing


@dataclass(frozen=True)
class Epoch:
    """One row of history.csv."""

    epoch: int  # from 1
    loss: float  # mean cross-entropy over the epoch's dialogues, nats, dropout on
    train_accuracy: float  # correct / seen, dropout on, weights moving
    test_loss: float  # over Validation, after the epoch
    test_accuracy: float  # correct / seen, over Validation, after the epoch
    seconds: float  # wall time of the training steps, evaluation not included
    tokens: int  # real tokens trained on, [CLS] and [SEP] included, padding not

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4f}, train accuracy {self.train_accuracy:.4f}, "
            f"test loss {self.test_loss:.4f}, test accuracy {self.test_accuracy:.4f}, "
            f"{self.seconds:.1f} s"
        )


def write_history(history: list[Epoch], path: Path) -> None:
    """history.csv: one row an epoch, the columns of Epoch; the old file or the new, never half."""
    with replacing() as beside, beside(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Epoch)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in history)


def read_history(path: Path) -> list[dict[str, float]]:
    """history.csv as a list of column → number."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
