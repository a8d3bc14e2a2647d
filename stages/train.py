"""models/encoder/ + data/interim/tokens/ → models/classifier/ and history.csv, run.json"""

from pathlib import Path

from storyflower.common.errors import exit_with_line
from storyflower.common.params import Params
from storyflower.train import run


def main() -> None:
    run.train(
        Params.load(),
        encoder=Path("models/encoder"),
        dialogues=Path("data/interim/dialogues.parquet"),
        labels=Path("data/interim/labels.json"),
        tokens=Path("data/interim/tokens"),
        classifier=Path("models/classifier"),
        history=Path("reports/history.csv"),
        record=Path("reports/run.json"),
        lock=Path(".storyflower/train.lock"),
    )


if __name__ == "__main__":
    exit_with_line(main)
