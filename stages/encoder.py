"""encoders/<encoder>.yaml → models/encoder/"""

from pathlib import Path

from storyflower.common import repository
from storyflower.common.errors import exit_with_line
from storyflower.common.params import Params
from storyflower.encoder import prepare


def main() -> None:
    repository.refuse_what_is_lost()
    params = Params.load()
    card = prepare.prepare(
        Path("encoders") / f"{params.encoder}.yaml",
        Path("models/encoder"),
    )
    print(f"encoder {params.encoder}: {card.kind}, {card.tokenizer}, licence {card.license}")


if __name__ == "__main__":
    exit_with_line(main)
