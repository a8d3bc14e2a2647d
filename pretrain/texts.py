"""Text files → the texts to pretrain on.

In: .txt files with one text a line, and .tsv files with a label, a tab and a text a line; either
may be compressed (.gz), all are utf-8.
Out: distinct texts in the order of the files; of a text that a .tsv has, its label, too. The name
of a .tsv is that of its task; a text has one task at most, the first that names it.
"""

import gzip
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from storyflower.common.errors import InputError
from storyflower.interim.labels import MAX_CLASSES

NO_LABEL = -1


@dataclass
class Texts:
    """Distinct texts, each with the number of its label or NO_LABEL."""

    label_of: dict[str, int] = field(default_factory=dict)  # text → number, in order
    classes: dict[str, dict[str, int]] = field(default_factory=dict)  # task → label → number

    def __len__(self) -> int:
        return len(self.label_of)

    @property
    def labels(self) -> np.ndarray:
        """(texts,) int64; the numbers of all tasks' labels run on from one another."""
        return np.fromiter(self.label_of.values(), np.int64, len(self))

    @property
    def tasks(self) -> list[int]:
        """How many labels each task has, in the order of their numbers."""
        return [len(labels) for labels in self.classes.values()]


def read_texts(files: Sequence[Path]) -> Texts:
    """Read files; raises InputError, naming file and line, for what cannot be trained on."""
    texts = Texts()
    labeled = []
    for file in files:
        name = file.name.removesuffix(".gz")
        if not name.endswith((".txt", ".tsv")):
            raise InputError(f"{file}: expected .txt or .tsv, as it is or with .gz")
        before = len(texts)
        rows = read_labeled(file) if name.endswith(".tsv") else read_plain(file)
        count = 0
        for label, text in rows:
            count += 1
            texts.label_of.setdefault(text, NO_LABEL)
            if label:
                labeled.append((file.name.partition(".")[0], label, text))
        if count == 0:
            raise InputError(f"{file}: the file is empty")
        if count == 1:
            raise InputError(f"{file}: holds one line; expected one text a line")
        print(f"{file}: {count:,} texts, {len(texts) - before:,} of them new", flush=True)
    for task, label, _ in sorted(set(labeled), key=lambda row: row[:2]):
        texts.classes.setdefault(task, {}).setdefault(label, -1)
    numbers = iter(range(MAX_CLASSES * len(texts.classes)))
    for task, names in texts.classes.items():
        if not 2 <= len(names) <= MAX_CLASSES:
            raise InputError(
                f"{task}.tsv: {len(names)} labels, expected 2 to {MAX_CLASSES}; does the first "
                "column hold something else?"
            )
        texts.classes[task] = {name: next(numbers) for name in names}
    for task, label, text in labeled:
        if texts.label_of[text] == NO_LABEL:
            texts.label_of[text] = texts.classes[task][label]
    return texts


def read_plain(file: Path) -> Iterator[tuple[str, str]]:
    """("", text) of each line that is not blank."""
    for _, line in lines(file):
        yield "", line


def read_labeled(file: Path) -> Iterator[tuple[str, str]]:
    """(label, text) of each line; raises InputError for one without exactly one tab."""
    for number, line in lines(file):
        label, tab, text = (part.strip() for part in line.partition("\t"))
        if not (label and text) or "\t" in text:
            raise InputError(f"{file}, line {number}: expected a label, one tab and a text")
        yield label, text


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, in NFC, as numbered from 1."""
    number = 0
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if text := unicodedata.normalize("NFC", line.decode("utf-8-sig")).strip():
                    yield number, text
    except UnicodeDecodeError:
        raise InputError(f"{file}, line {number}: not utf-8; save the file as utf-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"{file}: damaged or truncated gzip, after line {number}") from None
    except FileNotFoundError:
        raise InputError(f"{file}: not found") from None
