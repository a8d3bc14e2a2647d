"""Text files → the texts to pretrain on.

In: .txt files with one text a line, and .tsv files with a label, a tab and a text a line; either
may be compressed (.gz), all are utf-8.
Out: distinct texts in the order of the files; of a text that a .tsv has, its label, too. The name
of a .tsv, without .tsv or .tsv.gz, is that of its task; a text has one label of one task at most,
the first that it is given.
"""

import gzip
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
    def tasks(self) -> dict[str, list[str]]:
        """Task → its labels, in the order of their numbers."""
        return {task: list(labels) for task, labels in self.classes.items()}


def read_texts(files: Sequence[Path]) -> Texts:
    """Read files; raises InputError, naming file and line, for what cannot be trained on.

    Says how many texts each file and each label has.
    """
    texts = Texts()
    file_of = check_files(files)
    tasks = {file: task for task, file in file_of.items()}
    pairs: dict[tuple[str, str], int] = {}  # (task, label) → number, in the order of the files
    for file in files:
        before, pairs_before, count = len(texts), len(pairs), 0
        for label, text in read_labeled(file) if file in tasks else read_plain(file):
            count += 1
            number = NO_LABEL
            if file in tasks:
                number = pairs.setdefault((tasks[file], label), len(pairs))
            if texts.label_of.setdefault(text, number) == NO_LABEL:
                texts.label_of[text] = number
        if count == 0:
            raise InputError(f"{file}: the file is empty")
        if count == 1:
            raise InputError(f"{file}: holds one line; expected one text a line")
        labels = len(pairs) - pairs_before
        if file in tasks and not 2 <= labels <= MAX_CLASSES:
            raise InputError(
                f"{file}: {labels} labels, expected 2 to {MAX_CLASSES}; does the first column hold "
                "something else?"
            )
        print(f"{file}: {count:,} texts, {len(texts) - before:,} of them new", flush=True)
    final = {pairs[pair]: number for number, pair in enumerate(sorted(pairs))}
    for task, label in sorted(pairs):
        texts.classes.setdefault(task, {})[label] = final[pairs[task, label]]
    for text, number in texts.label_of.items():
        if number != NO_LABEL:
            texts.label_of[text] = final[number]
    show_labels(texts, file_of)
    return texts


def check_files(files: Sequence[Path]) -> dict[str, Path]:
    """The file of each task; raises InputError, before any is read, for one that is none."""
    file_of: dict[str, Path] = {}
    for file in files:
        name = file.name.removesuffix(".gz")
        if not name.endswith((".txt", ".tsv")):
            raise InputError(f"{file}: expected .txt or .tsv, as it is or with .gz")
        if not file.is_file():
            fault = "not a file; name the files in it" if file.exists() else "not found"
            raise InputError(f"{file}: {fault}")
        if name.endswith(".tsv"):
            task = name.removesuffix(".tsv")
            if task in file_of:
                raise InputError(
                    f"{file}: its task is {task}, as that of {file_of[task]}; rename one of them, "
                    "or put both into one file"
                )
            file_of[task] = file
    return file_of


def show_labels(texts: Texts, file_of: Mapping[str, Path]) -> None:
    """Say how many texts each label has, and warn of a label that has one or none."""
    counts = Counter(texts.label_of.values())
    for task, labels in texts.classes.items():
        listed = ", ".join(f"{label} {counts[number]:,}" for label, number in labels.items())
        print(f"{file_of[task]}: {len(labels)} labels: {listed}", flush=True)
        rare = [label for label, number in labels.items() if counts[number] < 2]
        if rare:
            print(
                f"warning: {file_of[task]}: at most one text has the label {', '.join(rare)}; is "
                "it misspelled?",
                file=sys.stderr,
                flush=True,
            )


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
