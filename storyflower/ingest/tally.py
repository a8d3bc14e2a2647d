"""Counts what is read from the files of a split, and what is dropped.

In: the usable rows of a file, one by one, and the reasons of the others.
Out: the figures of each file and of the split for the report; for each usable row, a hash of its
text and the number of its class, by which equal texts are counted and Validation is drawn.
"""

import functools
import re
import unicodedata
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from storyflower.common.errors import InputError, escaped
from storyflower.ingest.aihub import FINE
from storyflower.ingest.columns import Names
from storyflower.ingest.split import mixed
from storyflower.interim.labels import MAX_CLASSES
from storyflower.sheets.sheet import AI_HUB, MAX_NAMED, NoTextCells, Sheet, note

# Share of a file's rows, standing in the files before it under the same class, at which the file is
# an export of those; and the fewest rows of which that is certain
SAME_ROWS, FEWEST = 0.9, 50


@dataclass
class FileTally:
    """One file's counts."""

    sheet: Sheet
    split: "Tally"
    start: int  # rows of the split before it
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: tuple[str, int] | None = None  # reason, row
    no_text: NoTextCells = field(default_factory=NoTextCells)
    lost: int = 0  # texts with U+FFFD
    first_lost: int = 0  # row
    equal_texts: int = 0  # that also stand in a file before it

    @property
    def kept(self) -> int:
        return self.read - self.dropped.total()

    @property
    def place(self) -> slice:
        """Where its rows are among those of the split."""
        return slice(self.start, self.start + self.kept)

    def row(self, number: int) -> str:
        return f"{self.sheet.where}, {self.sheet.row_word} {number}"

    def drop(self, reason: str, number: int) -> None:
        self.dropped[reason] += 1
        self.first_dropped = self.first_dropped or (reason, number)

    def lose(self, number: int) -> None:
        """Count a text in which a program has put U+FFFD in the place of what it could not read."""
        self.lost += 1
        self.first_lost = self.first_lost or number

    def keep(self, number: int, text_hash: int, label: str, fine: str) -> None:
        """Count a usable row.

        Raises InputError for a second header, one class too many, or two pairs that are one class.
        """
        names, known = self.split.names, self.split.known
        name = label
        if names.target == "fine":
            name = f"{label}/{fine}"
            if self.split.labels_of.setdefault(name, label) != label:
                raise InputError(
                    f"{self.row(number)}: its label and {FINE}, joined by /, are the class of "
                    "another pair; write them without /"
                )
        if name not in known:
            if not names.own_label and AI_HUB.fullmatch(label):
                raise self.second_header(number)
            known[name] = len(known)
            self.split.first.append((self, number))
            self.split.labels.append(label)
            if len(known) > MAX_CLASSES:
                column = FINE if names.target == "fine" else names.label
                raise InputError(
                    f"{self.row(number)}: the {len(known)}th label; {MAX_CLASSES} can be learned; "
                    f"does {column} hold something else?"
                )
        self.split.text_hashes.append(text_hash)
        self.split.class_numbers.append(known[name])

    def second_header(self, number: int) -> InputError:
        return InputError(
            f"{self.row(number)}: a second header; were two files put together? Remove it"
        )

    def check(self, max_dropped: float) -> None:
        """Raise InputError for cells that are not text, too many dropped rows, or no usable row."""
        where, total = self.sheet.where, self.dropped.total()
        self.no_text.raise_any()
        if not self.read:
            raise InputError(f"{where}: holds no dialogue, only the header at most")
        if total > max_dropped * self.read:
            reason, number = self.first_dropped
            counts = ", ".join(f"{count} with {why}" for why, count in self.dropped.items())
            raise InputError(
                f"{where}: {total} of {self.read} rows unusable ({counts}; first "
                f"{self.sheet.row_word} {number}: {reason}), above max_dropped {max_dropped:g}; "
                "complete them or raise it"
            )
        if total == self.read:
            raise InputError(f"{where}: no usable row")

    def report(self) -> dict[str, Any]:
        return {
            "source": self.sheet.where,
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "texts_also_in_earlier_files": self.equal_texts,
            "labels": self.split.label_counts(self.place),
        }


@dataclass
class Tally:
    """The counts of one split."""

    name: str
    names: Names
    labels_of: dict[str, str] = field(default_factory=dict)  # class → label, of both splits
    files: list[FileTally] = field(default_factory=list)
    known: dict[str, int] = field(default_factory=dict)  # class → its number
    labels: list[str] = field(default_factory=list)  # of each class
    first: list[tuple[FileTally, int]] = field(default_factory=list)  # where each class begins
    text_hashes: Any = field(default_factory=lambda: array("Q"))  # (rows,)
    class_numbers: Any = field(default_factory=lambda: array("H"))  # (rows,)

    def begin(self, sheet: Sheet) -> FileTally:
        """The tally of the split's next file."""
        self.files.append(FileTally(sheet, self, len(self.text_hashes)))
        return self.files[-1]

    def hashes(self) -> np.ndarray:
        """uint64 (rows,), not a copy"""
        return np.asarray(self.text_hashes, dtype=np.uint64)

    def classes(self) -> np.ndarray:
        """uint16 (rows,), not a copy"""
        return np.asarray(self.class_numbers, dtype=np.uint16)

    def classes_by_name(self) -> np.ndarray:
        """uint16 (rows,), the classes numbered in the order of their names, not of the rows"""
        number = {name: number for number, name in enumerate(sorted(self.known))}
        return np.array([number[name] for name in self.known], np.uint16)[self.classes()]

    def counts(self, rows: slice = slice(None)) -> np.ndarray:
        """The rows of each class, (classes,)."""
        return np.bincount(self.classes()[rows], minlength=len(self.known))

    def label_counts(self, rows: slice = slice(None)) -> dict[str, int]:
        """The rows of each label, the most frequent first."""
        counts: Counter[str] = Counter()
        for label, count in zip(self.labels, self.counts(rows).tolist(), strict=True):
            if count:
                counts[label] += count
        return dict(counts.most_common())

    def part(self, rows: np.ndarray, files: bool = True) -> "Tally":
        """The tally of some rows, bool (rows,), to report; with the files or without."""
        return Tally(
            name=self.name,
            names=self.names,
            files=self.files if files else [],
            known=self.known,
            labels=self.labels,
            text_hashes=self.hashes()[rows],
            class_numbers=self.classes()[rows],
        )

    def note_what_is_odd(self) -> None:
        """Print notes on what may be a mistake; counts the texts that files have in common.

        Raises InputError for a file that has hardly any row of its own.
        """
        for file in self.files:
            if file.lost:
                note(
                    f"{file.sheet.where}: {file.lost} of {file.kept} texts (first "
                    f"{file.sheet.row_word} {file.first_lost}) hold \ufffd, in the place of a "
                    "character that was lost; save the file again as utf-8 from where it was whole"
                )
        self._note_equal_texts()
        self._note_other_classes()
        if self.name == "Training":
            self._note_classes_of_one_row()
            self._note_classes_alike()

    def _note_equal_texts(self) -> None:
        @functools.cache
        def ordered(number: int) -> np.ndarray:
            return np.sort(self.hashes()[self.files[number].place])

        found = self._in_earlier_files(self.hashes())
        for said_before, (number, (equal, likely)) in enumerate(found.items()):
            file = self.files[number]
            file.equal_texts = equal
            shared = {n: number_in(ordered(number), ordered(n)) for n in likely}
            most = max(likely, key=shared.__getitem__)
            said = (
                f"{file.sheet.where}: {equal} of its {file.kept} texts also stand in the files "
                f"before it ({shared[most]} in {self.files[most].sheet.where}); "
            )
            most_equal = file.kept >= FEWEST and equal >= SAME_ROWS * file.kept
            if most_equal and self._repeats.get(number, (0,))[0] >= SAME_ROWS * file.kept:
                raise InputError(f"{said}their labels are the same; keep one file")
            if said_before < MAX_NAMED:
                note(f"{said}if they are the same rows, remove them from one")
        if (more := len(found) - MAX_NAMED) > 0:
            note(f"{self.name}: {more} more files have texts that also stand in files before them")

    @functools.cached_property
    def _repeats(self) -> dict[int, tuple[int, list[int]]]:
        """As _in_earlier_files, of the texts that have the same classes there."""
        return self._in_earlier_files(self.hashes() ^ mixed(self.classes().astype(np.uint64)))

    def _in_earlier_files(self, values: np.ndarray) -> dict[int, tuple[int, list[int]]]:
        """The files with values, uint64 (rows,), that also stand in a file before them.

        Each with the number of these rows, and with earlier files that may have the most of them:
        among the first ones that have each value and among the last ones, the most frequent. To
        look at all pairs of files would take hours for thousands.
        """
        count = len(self.files)
        if count < 2:
            return {}
        order = np.argsort(values, kind="stable")  # the rows of a value in the order of the files
        kept = [file.kept for file in self.files]
        owner = np.repeat(np.arange(count, dtype=np.int32), kept)[order]
        values = values[order]
        del order  # at 20 million rows, each of these is 80 or 160 MB
        differ = values[1:] != values[:-1]
        del values
        first = np.concatenate([[True], differ])
        begins = np.concatenate([[True], differ | (owner[1:] != owner[:-1])])
        firsts = owner[first][np.cumsum(first, dtype=np.int32) - 1]
        before = np.roll(owner, 1)[begins][np.cumsum(begins, dtype=np.int32) - 1]
        again = firsts < owner
        own = owner[again].astype(np.int64)
        found: dict[int, tuple[int, list[int]]] = {}
        for others in (firsts[again], before[again]):
            pairs, counts = np.unique(own * count + others, return_counts=True)
            files, others = np.divmod(pairs, count)
            ranked = np.lexsort((-others, counts, files))  # the most frequent other comes last
            likely = dict(zip(files[ranked].tolist(), others[ranked].tolist(), strict=True))
            for number, other in likely.items():
                found.setdefault(number, (0, []))[1].append(other)
        totals = np.bincount(own, minlength=count)
        return {number: (int(totals[number]), sorted(found[number][1])) for number in sorted(found)}

    def _note_other_classes(self) -> None:
        """Of a file that has none of the classes before it: are its labels another column's?"""
        before = np.zeros(len(self.known), dtype=bool)
        for file in self.files:
            mine = self.counts(file.place) > 0
            if before.any() and not before[mine].any():
                note(
                    f"{file.sheet.where}: none of its labels stands in the files before it; is "
                    f"{self.names.label} the same in all of them?"
                )
            before |= mine

    def _note_classes_of_one_row(self) -> None:
        counts = self.counts()
        rows = [first for first, count in zip(self.first, counts, strict=True) if count == 1]
        if rows:
            where, listed = self._listed(rows)
            note(
                f"{where}: {len(rows)} of {len(counts)} classes have one row only ({listed}); is "
                "the label misspelled?"
            )

    def _note_classes_alike(self) -> None:
        alike: dict[str, list[tuple[FileTally, int]]] = {}
        for name, first in zip(self.known, self.first, strict=True):
            alike.setdefault(bare(name), []).append(first)
        if rows := [row for each in alike.values() if len(each) > 1 for row in each]:
            where, listed = self._listed(rows)
            note(
                f"{where}: {len(rows)} of {len(self.known)} classes differ from one another in "
                f"capitals, blanks, form (① and 1) or a .0 alone (first in {listed}); are they the "
                "same?"
            )

    def _listed(self, rows: list[tuple[FileTally, int]]) -> tuple[str, str]:
        """The file or the split, and its `rows`, for a note.

        Not their labels: if columns were mixed up, a label may be personal text.
        """
        more = ", …" * (len(rows) > MAX_NAMED)
        if len(self.files) > 1:
            return self.name, "; ".join(file.row(row) for file, row in rows[:MAX_NAMED]) + more
        sheet = self.files[0].sheet
        numbers = ", ".join(str(row) for _, row in rows[:MAX_NAMED])
        return sheet.where, f"{sheet.row_word}{'s' * (len(rows) > 1)} {numbers}{more}"

    def report(self) -> dict[str, Any]:
        """This split's part of the report; sorts the hashes in place."""
        dropped = sum((file.dropped for file in self.files), Counter())
        files = [file.report() for file in self.files]
        labels = self.label_counts()
        ordered = self.hashes()
        ordered.sort()  # np.unique would copy the hashes, 160 MB for 20 million texts
        return {
            "files": files,
            "read": len(ordered) + dropped.total(),
            "kept": len(ordered),
            "dropped": dict(dropped),
            "repeated_texts": int((ordered[1:] == ordered[:-1]).sum()),
            "labels": labels,
        }

    def texts_also_in(self, other: "Tally") -> int:
        """How many of its texts stand in another split; both have reported."""
        return number_in(self.hashes(), other.hashes())


def bare(name: str) -> str:
    """A class's name without what people and programs write now one way and now another."""
    name = "".join(unicodedata.normalize("NFKC", name).casefold().split())
    return re.sub(r"(?<=\d)\.0+$", "", name)


def number_in(hashes: np.ndarray, among: np.ndarray) -> int:
    """How many of the hashes stand among others, which are sorted."""
    if not len(among):
        return 0
    insertions = np.searchsorted(among, hashes)
    return int((among.take(insertions, mode="clip") == hashes).sum())


def summary_lines(report: dict[str, Any]) -> list[str]:
    """What a person should know of ingest's report, in lines."""
    drawn, lines = report.get("drawn"), []
    for split, part in report["splits"].items():
        if len(part["files"]) > 1 or drawn:
            lines += [escaped(f"{file['source']}: {counts(file)}") for file in part["files"]]
        if not drawn:
            lines.append(f"{split}: {counts(part)}")
    if drawn:
        lines.append(
            f"no Validation file: {drawn['rows']} of {drawn['of']} rows became Validation "
            f"(validation_share {drawn['validation_share']:g}, seed {drawn['seed']}); the same "
            "people wrote Training, so the accuracy flatters, compared with texts of other writers"
        )
    if shared := report["validation_texts_also_in_training"]:
        lines.append(
            f"note: {shared} Validation texts also stand in Training; they flatter the accuracy"
        )
    return lines


def counts(part: dict[str, Any]) -> str:
    dropped = ", ".join(f"{n} with {reason}" for reason, n in part["dropped"].items()) or "none"
    return f"{part['read']} rows read, {part['kept']} kept; dropped: {dropped}"
