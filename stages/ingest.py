"""data/<corpus>/ → data/interim/dialogues.parquet"""

from pathlib import Path

from storyflower import corpus, private
from storyflower.errors import exit_with_line
from storyflower.params import Params


def main() -> None:
    params = Params.load()
    private.close_folders()
    report = corpus.ingest(
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
