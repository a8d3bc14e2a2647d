"""data/<corpus>/ → data/interim/dialogues.parquet"""

from pathlib import Path

from storyflower.common import repository
from storyflower.common.errors import exit_with_line
from storyflower.common.params import Params
from storyflower.ingest import ingest


def main() -> None:
    repository.refuse_what_is_lost()
    params = Params.load()
    repository.close_folders()
    report = ingest.ingest(
        Path("data") / params.corpus,
        Path("data/interim/dialogues.parquet"),
        Path("reports/ingest.json"),
        turns=params.turns,
        target=params.target,
        max_dropped=params.max_dropped,
    )
    for split, part in report["splits"].items():
        dropped = ", ".join(f"{n} with {reason}" for reason, n in part["dropped"].items()) or "none"
        print(f"{split}: {part['read']} rows read, {part['kept']} kept; dropped: {dropped}")
    if shared := report["validation_texts_also_in_training"]:
        print(f"note: {shared} Validation texts also stand in Training; they flatter the accuracy")


if __name__ == "__main__":
    exit_with_line(main)
