"""data/interim/dialogues.parquet → data/interim/tokens/"""

from pathlib import Path

from storyflower.common import repository
from storyflower.common.errors import exit_with_line
from storyflower.common.files import read_json
from storyflower.common.params import Params
from storyflower.tokenize import tokenize


def main() -> None:
    repository.refuse_what_is_lost()
    params = Params.load().resolved(read_json(Path("models/encoder/card.json")))
    report = tokenize.tokenize(
        Path("data/interim/dialogues.parquet"),
        Path("data/interim/labels.json"),
        Path("models/encoder"),
        Path("data/interim/tokens"),
        Path("reports/tokens.json"),
        target=params.target,
        max_len=params.max_len,
    )
    for split in ("Training", "Validation"):
        part = report[split]
        print(
            f"{split}: {part['dialogues']} dialogues, {part['mean_length']:.1f} tokens on average, "
            f"{part['unknown_share']:.2%} [UNK], {part['cut_share']:.2%} cut to {params.max_len}"
        )


if __name__ == "__main__":
    exit_with_line(main)
