"""data/<corpus>/ → data/interim/dialogues.parquet"""

from pathlib import Path
from typing import Any

from storyflower.common import repository
from storyflower.common.errors import exit_with_line
from storyflower.common.params import Params
from storyflower.ingest import ingest


def counts(part: dict[str, Any]) -> str:
    dropped = ", ".join(f"{n} with {reason}" for reason, n in part["dropped"].items()) or "none"
    return f"{part['read']} rows read, {part['kept']} kept; dropped: {dropped}"


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
        text_columns=params.text_columns,
        label_column=params.label_column,
        validation_share=params.validation_share,
        seed=params.seed,
    )
    drawn = report.get("drawn")
    for split, part in report["splits"].items():
        if len(part["files"]) > 1 or drawn:
            for file in part["files"]:
                print(f"{file['source']}: {counts(file)}")
        if not drawn:
            print(f"{split}: {counts(part)}")
    if drawn:
        print(
            f"no Validation file: {drawn['rows']} of {drawn['of']} rows became Validation "
            f"(validation_share {drawn['validation_share']:g}, seed {drawn['seed']}); the same "
            "people wrote Training, so the accuracy flatters, compared with texts of other writers"
        )
    if shared := report["validation_texts_also_in_training"]:
        print(f"note: {shared} Validation texts also stand in Training; they flatter the accuracy")


if __name__ == "__main__":
    exit_with_line(main)
