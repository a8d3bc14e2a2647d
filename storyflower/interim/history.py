"""history.csv: the results of each epoch of a training."""

import csv
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

from storyflower.common.errors import InputError
from storyflower.common.files import replacing


@dataclass(frozen=True)
class Epoch:
    """One row of history.csv."""

    epoch: int  # from 1
    loss: float  # mean cross-entropy over the epoch's dialogues, nats, dropout on
    train_accuracy: float  # correct / seen during the epoch: dropout on, weights changing
    test_loss: float  # over Validation, after the epoch
    test_accuracy: float  # correct / seen, over Validation, after the epoch
    seconds: float  # wall time of the training steps, evaluation not included
    tokens: int  # real tokens trained on, [CLS] and [SEP] included, padding not
    dev_loss: float | None = None  # over the dev part, held back from Training; None without one
    dev_accuracy: float | None = None

    def __str__(self) -> str:
        dev = ""
        if self.dev_accuracy is not None:
            dev = f"dev loss {self.dev_loss:.4f}, dev accuracy {self.dev_accuracy:.4f}, "
        return (
            f"loss {self.loss:.4f}, train accuracy {self.train_accuracy:.4f}, {dev}"
            f"test loss {self.test_loss:.4f}, test accuracy {self.test_accuracy:.4f}, "
            f"{self.seconds:.1f} s"
        )


def write_history(history: list[Epoch], path: Path) -> None:
    """Write history.csv: one row per epoch, without the dev columns if there is no dev part.

    It has at least one. A reader sees the old file or the new one, never a partial file.
    """
    with replacing() as beside, beside(path).open("w", encoding="utf-8", newline="") as file:
        rows = [asdict(row) for row in history]
        names = [name for name, value in rows[-1].items() if value is not None]
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def best_epoch(history: list[Epoch]) -> int:
    """The epoch, from 1, with the best dev accuracy; in a tie, the one with the lowest dev loss."""
    return min(history, key=lambda row: (-row.dev_accuracy, row.dev_loss, row.epoch)).epoch


def read_history(path: Path) -> list[dict[str, float]]:
    """history.csv as a list of rows, each column → number; raises InputError for a damaged one."""
    needed = {field.name for field in fields(Epoch) if field.default is MISSING}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            rows = [{key: float(value) for key, value in row.items()} for row in table]
        if rows and needed <= rows[0].keys():
            return rows
    except (ValueError, TypeError, csv.Error):  # TypeError: a row is too short or too long
        pass
    raise InputError(f"{path}: damaged; make it again with 'dvc repro'")
