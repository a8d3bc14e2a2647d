"""The label index: class name ↔ class number.

In: the table of dialogues.
Out: a JSON file with the classes in order of first appearance in Training, as in the original
notebook.
Not supported: fewer than 2 or more than 100 classes.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from storyflower.common.errors import InputError
from storyflower.common.files import read_json, write_json
from storyflower.interim import dialogues
from storyflower.interim.tokens import TokenArrays

MIN_CLASSES, MAX_CLASSES = 2, 100
AGAIN = "make it again with 'dvc repro'"


class LabelIndex:
    """A bijection between class names and 0..len-1."""

    def __init__(self, names: Iterable[str]):
        """Raises InputError for fewer than 2 or more than 100 names, or a repeated name."""
        self.names = tuple(names)
        self._index = {name: number for number, name in enumerate(self.names)}
        if len(self._index) != len(self.names):
            raise InputError("a label appears twice")
        if not MIN_CLASSES <= len(self.names) <= MAX_CLASSES:
            raise InputError(
                f"{len(self.names)} distinct labels; {MIN_CLASSES} to {MAX_CLASSES} can be learned"
            )

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, names: Sequence[str]) -> np.ndarray:
        """Names → class numbers, int64 (n,); raises InputError for an unknown name."""
        try:
            return np.array([self._index[name] for name in names], dtype=np.int64)
        except KeyError:
            raise InputError(f"a label of the dialogues is not in labels.json; {AGAIN}") from None

    def save(self, path: Path) -> None:
        write_json({"labels": list(self.names)}, path)

    @classmethod
    def load(cls, path: Path) -> "LabelIndex":
        """Raises InputError for a file that was changed by hand."""
        document = read_json(path)
        names = document.get("labels") if isinstance(document, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{path}: damaged; {AGAIN}")
        try:
            return cls(names)
        except InputError as error:
            raise InputError(f"{path}: {error}; {AGAIN}") from None


def build(table: Path, output: Path, *, target: str) -> LabelIndex:
    """Number the classes of Training and write the index.

    Raises InputError that names file and row if a Validation label is not in Training.
    """
    names: dict[str, None] = {}  # keeps the order of first appearance
    for split, batch in dialogues.batches(table, ["row", "label", "fine", "file"]):
        class_names = dialogues.class_names(batch, target)
        if split == "Training":
            names.update(dict.fromkeys(class_names))
            continue
        for number, name in enumerate(class_names):
            if name not in names:
                file, row = (batch.column(column)[number].as_py() for column in ("file", "row"))
                # Names the row, not the label: if columns were mixed up, it may be personal text.
                raise InputError(
                    f"{file}, row {row}: its label is none of the "
                    f"{len(names)} of Training; correct it or remove the row"
                )
    try:
        index = LabelIndex(names)
    except InputError as error:
        raise InputError(f"{dialogues.source(table, 'Training')}: {error}") from None
    index.save(output)
    return index


def check_numbers(
    names: Sequence[str], source: Path, *, table: Path, tokens: Path, target: str
) -> None:
    """Raise InputError unless the tokens have the class number of every row of the table, in order.

    `names` are the classes by their numbers, from `source`; each of them is in Training.
    """
    index = {name: number for number, name in enumerate(names)}
    arrays = {split: TokenArrays.load(tokens, split).labels for split in dialogues.SPLITS}
    seen = dict.fromkeys(arrays, 0)
    fits = arrays["Training"].max(initial=-1) + 1 == len(index)
    for split, batch in dialogues.batches(table, ["label", "fine"]):
        here = slice(seen[split], seen[split] + len(batch))
        numbers = [index.get(name) for name in dialogues.class_names(batch, target)]
        fits = fits and arrays[split][here].tolist() == numbers
        seen[split] = here.stop
    if not fits or seen != {split: len(numbers) for split, numbers in arrays.items()}:
        raise InputError(f"{source}, {table} and {tokens} are of different runs; run 'dvc repro'")
