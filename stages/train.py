"""models/encoder/ + data/interim/tokens/ → models/classifier/ and reports/history.csv"""

from pathlib import Path

from storyflower import experiment
from storyflower.errors import exit_with_line
from storyflower.params import Params


def main() -> None:
    experiment.train(
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
