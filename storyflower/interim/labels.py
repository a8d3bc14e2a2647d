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

MIN_CLASSES, MAX_CLASSES = 2, 100


class LabelIndex:
    """A bijection between class names and 0..len-1."""

    def __init__(self, names: Iterable[str]):
        """Raises InputError for fewer than 2 or more than 100 names, or a repeated name."""
        self.names = tuple(names)
        self._index = {name: number for number, name in enumerate(self.names)}
        if len(self._index) != len(self.names):
            raise InputError("a label appears twice; run 'dvc repro' once more")
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
            raise InputError("a label is not in the index; run 'dvc repro' once more") from None

    def save(self, path: Path) -> None:
        write_json({"labels": list(self.names)}, path)

    @classmethod
    def load(cls, path: Path) -> "LabelIndex":
        """Raises InputError for a file that was changed by hand."""
        document = read_json(path)
        names = document.get("labels") if isinstance(document, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{path}: damaged; make it again with 'dvc repro'")
        return cls(names)


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
