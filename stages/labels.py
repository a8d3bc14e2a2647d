"""data/interim/dialogues.parquet → data/interim/labels.json"""

from pathlib import Path

from storyflower.common import repository
from storyflower.common.errors import exit_with_line
from storyflower.common.params import Params
from storyflower.interim import labels


def main() -> None:
    repository.refuse_what_is_lost()
    params = Params.load()
    index = labels.build(
        Path("data/interim/dialogues.parquet"),
        Path("data/interim/labels.json"),
        target=params.target,
    )
    print(f"{len(index)} classes: {', '.join(index.names[:12])}{' …' * (len(index) > 12)}")


if __name__ == "__main__":
    exit_with_line(main)
