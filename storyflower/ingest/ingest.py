"""Workbooks (xlsx, csv, json) → one table of dialogues.

In: a folder with one Training and one Validation file of AI Hub's 감성대화말뭉치, in the layout of
any of its releases; the files may be in subfolders, as AI Hub packs them.
Out: a Parquet table with the columns split, row, text, label, fine, and a report that counts the
rows read and the rows dropped, by reason. Texts are joined turns in NFC, otherwise unchanged.
Not supported: the system's turns, and who was speaking.

A value that cannot be right (a number in a text cell) is an error that names file, sheet and row. A
row without text or label is dropped and counted; more than max_dropped of them are an error.
"""

import functools
import hashlib
import os
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storyflower.common.errors import InputError
from storyflower.common.files import json_text, replacing
from storyflower.ingest.aihub import FINE, MAJOR, TURN, label_name
from storyflower.ingest.read_json import open_json
from storyflower.interim.dialogues import SCHEMA, SPLITS
from storyflower.interim.labels import MAX_CLASSES
from storyflower.sheets.read import open_sheet
from storyflower.sheets.sheet import (
    AI_HUB,
    MAX_NAMED,
    NOTHING,
    NoTextCells,
    NoTextError,
    Sheet,
    cell_string,
    cell_text,
    column_of,
    folded,
    note,
    says_nothing,
)

SUFFIXES = (".xlsx", ".csv", ".json", ".jsonl")
# Limits on what is in memory at a time: rows, and roughly characters
ROW_GROUP, GROUP_TEXT = 65536, 2**24


def find_files(folder: Path) -> dict[str, Path]:
    """Find the one Training and the one Validation file in and below a corpus folder.

    A file belongs to the split named in its own name, or else in the nearest parent folder up to
    `folder`. Names are compared in NFC and ignoring case, since unzip on macOS writes NFD. Raises
    InputError if a split has no file or several.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; put the Training and the Validation file there, "
            "or set corpus in params.yaml"
        )
    present = sorted(path.relative_to(folder) for path in files_below(folder))
    for path in present:
        if "\ufffd" in os.fsencode(path).decode("utf-8", "replace"):
            # A cp949 name from a Windows zip; the report and the table cannot store it.
            raise InputError(f"{folder}: the file name {str(path)!a} is not utf-8; rename the file")
    tables = {path: splits_named(path) for path in present if path.suffix.lower() in SUFFIXES}
    files = {}
    for split in SPLITS:
        candidates = [path for path, named in tables.items() if split in named]
        if not candidates:
            names = ", ".join(map(str, present[:10])) or "nothing"
            raise InputError(
                f"{folder}: no {split} file ({', '.join(SUFFIXES)} with {split!r} in its name or "
                f"its folder's); found {names}"
            )
        if len(candidates) > 1:
            names = ", ".join(map(str, candidates[:10]))
            raise InputError(f"{folder}: {len(candidates)} {split} files ({names}); keep one")
        files[split] = folder / candidates[0]
    if files["Training"] == files["Validation"]:
        raise InputError(f"{files['Training']}: names both splits; give each its own file")
    return files


def files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and below it, without hidden files and those that programs left there.

    Links are followed, but no folder is entered twice, so a link to a parent folder cannot cause an
    endless loop. Raises InputError for a folder that the system refuses to open.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})")

    entered = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        # macOS adds "__MACOSX" and "._" to zips; "~$" is Excel's lock file of an open workbook.
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__MACOSX")
        for name in names:
            path = Path(parent, name)
            if not name.startswith(("~$", ".")) and path.is_file():
                yield path


def splits_named(path: Path) -> list[str]:
    """The splits named in a path: those in its last part that names any."""
    for part in reversed(path.parts):
        name = unicodedata.normalize("NFC", part).lower()
        if named := [split for split in SPLITS if split.lower() in name]:
            return named
    return []


def ingest(
    folder: Path, output: Path, report: Path, *, turns: int, target: str, max_dropped: float
) -> dict[str, Any]:
    """Read a corpus folder into one Parquet table and one JSON report; return the report.

    A text is the first `turns` human turns joined with one space, without empty turns. With
    `target` "fine", rows without 감정_소분류 are dropped too. Raises InputError for bad input; then
    no output is written. Prints a note on stderr for input that is unusual but readable.
    """
    summary: dict[str, Any] = {"corpus": folder.name, "turns": turns, "splits": {}}
    hashes: dict[str, np.ndarray] = {}
    wanted = {MAJOR, *(TURN.format(turn) for turn in range(1, turns + 1))}
    wanted |= {FINE} if target == "fine" else set()
    sheets = {split: open_file(path, wanted) for split, path in find_files(folder).items()}
    schema = SCHEMA.with_metadata({split: sheet.where for split, sheet in sheets.items()})
    with replacing() as beside:
        part = beside(output)
        part.touch(mode=0o600)
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for split, sheet in sheets.items():
                tally = Tally(sheet, target)
                columns = Columns.find(sheet, turns, target)
                write_split(split, dialogues(sheet, columns, tally), writer)
                tally.check(max_dropped)
                if split == "Training":
                    tally.note_classes_of_one_row()
                summary["splits"][split] = tally.report()
                hashes[split] = np.frombuffer(tally.hashes, dtype=np.uint64)
        insertions = np.searchsorted(hashes["Training"], hashes["Validation"])
        seen = int((hashes["Training"].take(insertions, mode="clip") == hashes["Validation"]).sum())
        summary["validation_texts_also_in_training"] = seen
        beside(report).write_text(json_text(summary), encoding="utf-8")
    return summary


def open_file(path: Path, wanted: set[str]) -> Sheet:
    """Open one file by its suffix; raises InputError if the content does not fit the suffix."""
    is_json = path.suffix.lower() in (".json", ".jsonl")
    return open_json(path) if is_json else open_sheet(path, wanted)


@dataclass(frozen=True)
class Columns:
    """The positions of a dialogue's columns in a sheet."""

    turns: list[int]
    label: int
    fine: int | None

    @classmethod
    def find(cls, sheet: Sheet, turns: int, target: str) -> "Columns":
        """Find the columns by name; raises InputError for one that is missing or there twice."""
        columns = []
        for turn in range(1, turns + 1):
            try:
                columns.append(column_of(sheet, TURN.format(turn)))
            except InputError as error:
                later = {TURN.format(number) for number in range(turn, turns + 1)}
                if turn == 1 or later.intersection(sheet.columns):
                    raise
                raise InputError(
                    f"{error}; write turns: {turn - 1} into params.yaml to do without"
                ) from None
        return cls(
            turns=columns,
            label=column_of(sheet, MAJOR),
            fine=column_of(sheet, FINE) if target == "fine" or FINE in sheet.columns else None,
        )


@dataclass
class Tally:
    """Counts what was read from a sheet, and what was dropped."""

    sheet: Sheet
    target: str
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: tuple[str, int] | None = None  # reason, row
    labels: Counter[str] = field(default_factory=Counter)
    classes: dict[str, list[int]] = field(default_factory=dict)  # class → [rows, first row number]
    no_text: NoTextCells = field(default_factory=NoTextCells)
    hashes: array = field(default_factory=lambda: array("Q"))  # of the texts

    def drop(self, reason: str, number: int) -> None:
        self.dropped[reason] += 1
        self.first_dropped = self.first_dropped or (reason, number)

    def keep(self, number: int, text: str, label: str, fine: str) -> None:
        """Count a usable row. Raises InputError for a second header or one class too many."""
        self.hashes.append(text_hash(folded(text)))
        self.labels[label] += 1
        name = f"{label}/{fine}" if self.target == "fine" else label
        if name in self.classes:
            self.classes[name][0] += 1
            return
        self.classes[name] = [1, number]
        where = f"{self.sheet.where}, {self.sheet.row_word} {number}"
        if AI_HUB.fullmatch(label):
            raise InputError(f"{where}: a second header; were two files put together? Remove it")
        if len(self.classes) > MAX_CLASSES:
            column = FINE if self.target == "fine" else MAJOR
            raise InputError(
                f"{where}: the {len(self.classes)}th label; {MAX_CLASSES} can be learned; does "
                f"{column} hold something else?"
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

    def note_classes_of_one_row(self) -> None:
        rows = [number for count, number in self.classes.values() if count == 1]
        if rows:
            # Lists rows, not labels: if columns were mixed up, a label may be personal text.
            listed = ", ".join(map(str, rows[:MAX_NAMED])) + ", …" * (len(rows) > MAX_NAMED)
            note(
                f"{self.sheet.where}: {len(rows)} of {len(self.classes)} classes have one row only "
                f"({self.sheet.row_word}{'s' * (len(rows) > 1)} {listed}); is the label misspelled?"
            )

    def report(self) -> dict[str, Any]:
        """This sheet's part of the report; sorts `hashes`."""
        ordered = np.frombuffer(self.hashes, dtype=np.uint64)
        ordered.sort()  # in place; np.unique would copy the hashes, 160 MB for 20 million texts
        return {
            "source": self.sheet.where,
            "read": self.read,
            "kept": self.read - self.dropped.total(),
            "dropped": dict(self.dropped),
            "repeated_texts": int((ordered[1:] == ordered[:-1]).sum()),
            "labels": dict(self.labels.most_common()),
        }


def dialogues(
    sheet: Sheet, columns: Columns, tally: Tally
) -> Iterator[tuple[int, str, str, str | None]]:
    """The usable rows of a sheet as (row, text, label, fine); the tally counts the others.

    Raises InputError for invalid content. Cells that are not text are only counted; Tally.check
    raises one error for all of them.
    """
    for number, cells in sheet.rows:
        try:
            parts = [cell_text(sheet, number, column, cells) for column in columns.turns]
            label = cell_string(sheet, number, columns.label, cells)
            fine = "" if columns.fine is None else cell_string(sheet, number, columns.fine, cells)
        except NoTextError:
            add_no_text(sheet, number, cells, columns, tally.no_text)
            continue
        text = unicodedata.normalize("NFC", " ".join(part for part in parts if part))
        if not text and not any(cell not in ("", None) for cell in cells):
            continue  # a blank row is not a dialogue
        tally.read += 1
        try:
            label, fine, fault = class_of(label, fine, tally.target)
            if fault or not text:
                tally.drop("no text" if not text else fault, number)
                continue
            tally.keep(number, text, label, fine)
        except UnicodeEncodeError:
            raise InputError(
                f"{sheet.where}, {sheet.row_word} {number}: half of a surrogate pair, which "
                "is no character; repair the text"
            ) from None
        yield number, text, label, fine or None


@functools.lru_cache(maxsize=1024)
def class_of(label: str, fine: str, target: str) -> tuple[str, str, str]:
    """감정_대분류 and 감정_소분류 from two cells, and why they give no class ("" if they do).

    Raises UnicodeEncodeError for half of a surrogate pair.
    """
    label, fine = label_name(label), label_name(fine)
    fault = ""
    if says_nothing(label):
        fault = f"label {label!r}" if label.lower() in NOTHING else f"no {MAJOR}"
    elif says_nothing(fine):
        if target == "fine":
            fault = f"fine label {fine!r}" if fine.lower() in NOTHING else f"no {FINE}"
        fine = ""
    return label, fine, fault


def add_no_text(
    sheet: Sheet, number: int, cells: list, columns: Columns, no_text: NoTextCells
) -> None:
    """Count every cell of a row that should hold text and does not."""
    for column in (*columns.turns, columns.label, columns.fine):
        try:
            if column is not None:
                cell_string(sheet, number, column, cells)
        except NoTextError as error:
            no_text.add(error)


def write_split(
    split: str, rows: Iterator[tuple[int, str, str, str | None]], writer: pq.ParquetWriter
) -> None:
    """Append the (row, text, label, fine) of one split to the table, a group of rows at a time."""
    group: list[tuple] = []
    size = 0

    def flush() -> None:
        columns = [[split] * len(group), *map(list, zip(*group, strict=True))]
        writer.write_table(pa.table(columns, schema=writer.schema))
        group.clear()

    for row in rows:
        group.append(row)
        size += len(row[1])
        if len(group) == ROW_GROUP or size > GROUP_TEXT:
            flush()
            size = 0
    if group:
        flush()


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b; among 20 million texts, the chance of a collision is 1e-5.

    Raises UnicodeEncodeError for half of a surrogate pair, which a JSON escape can produce.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
