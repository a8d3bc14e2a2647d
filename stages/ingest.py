"""data/<corpus>/ → data/interim/dialogues.parquet"""

from pathlib import Path

from storyflower.common import repository
from storyflower.common.errors import exit_with_line
from storyflower.common.params import Params
from storyflower.ingest import ingest
from storyflower.ingest.tally import summary_lines


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
    print(*summary_lines(report), sep="\n")


if __name__ == "__main__":
    exit_with_line(main)
