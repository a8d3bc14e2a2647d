"""Tables (xlsx, csv, tsv, json) → one table of dialogues.

In: a folder with files of Training and of Validation, in the layout of any release of AI Hub's
감성대화말뭉치 or with your own columns; the files may be in subfolders, as AI Hub packs them.
Out: a Parquet table with the columns split, row, text, label, fine, file, and a report that counts
the rows read and the rows dropped, by reason. Texts are joined turns in NFC, otherwise unchanged.
Without a Validation file, a part of the rows becomes Validation (split.py says which).
Not supported: the system's turns, and who was speaking.

A value that cannot be right (a number in a text cell) is an error that names file, sheet and row. A
row without text or label is dropped and counted; more than max_dropped of them are an error.
"""

import functools
import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storyflower.common.errors import InputError
from storyflower.common.files import json_text, replacing
from storyflower.ingest.aihub import FINE, MAJOR, TURNS, label_name
from storyflower.ingest.columns import Columns, Names
from storyflower.ingest.files import find_files
from storyflower.ingest.read_json import open_json
from storyflower.ingest.split import draw
from storyflower.ingest.tally import FileTally, Tally
from storyflower.interim.dialogues import ROWS, SCHEMA, SPLITS
from storyflower.sheets.read import open_sheet
from storyflower.sheets.sheet import (
    ERRORS,
    NOTHING,
    NoTextCells,
    NoTextError,
    Sheet,
    cell_string,
    cell_text,
    folded,
    is_visible,
    says_nothing,
)

# Limits on what is in memory at a time: rows, and roughly characters
ROW_GROUP, GROUP_TEXT = 65536, 2**24


def ingest(
    folder: Path,
    output: Path,
    report: Path,
    *,
    turns: int,
    target: str,
    max_dropped: float,
    text_columns: str | Sequence[str] = TURNS,
    label_column: str = MAJOR,
    validation_share: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Read a corpus folder into one Parquet table and one JSON report; return the report.

    A text is the first `turns` of a row's `text_columns`, joined with one space, without empty
    ones. With `target` "fine", rows without 감정_소분류 are dropped too. Without a Validation file,
    about `validation_share` of the rows of each class become it, chosen by the seed; with 0, this
    is an error. Raises InputError for bad input; then no output is written. Prints a note on stderr
    for input that is unusual but readable.
    """
    names = Names.of(text_columns, label_column, turns=turns, target=target)
    files = find_files(folder, may_draw=validation_share > 0, fits=lambda path: fits(path, names))
    labels_of: dict[str, str] = {}
    tallies = {split: Tally(split, names, labels_of) for split in SPLITS}
    summary: dict[str, Any] = {"corpus": folder.name, "turns": turns}
    summary |= {"text_columns": list(names.texts), "label_column": names.label}
    with replacing() as beside:
        part = beside(output)
        with table_writer(part) as writer:
            for split, paths in files.items():
                for path in paths:
                    sheet = open_file(path, names.wanted, values=names.own_label)
                    file = tallies[split].begin(sheet)
                    columns = Columns.find(sheet, names)
                    write_rows(split, dialogues(sheet, columns, names, file), file, writer)
                    file.check(max_dropped)
                tallies[split].note_what_is_odd()
        if not files["Validation"]:
            whole = tallies["Training"]
            drawn = draw(whole.hashes(), whole.classes_by_name(), validation_share, seed)
            if not drawn.any():
                raise InputError(
                    f"{folder}: no Validation file, and no row can become Validation, because no "
                    "class has two different texts; add a file with 'Validation' in its name"
                )
            write_anew(part, drawn)
            tallies = {"Training": whole.part(~drawn), "Validation": whole.part(drawn, files=False)}
            summary["drawn"] = {"rows": int(drawn.sum()), "of": len(drawn)}
            summary["drawn"] |= {"validation_share": validation_share, "seed": seed}
        summary["splits"] = {split: tally.report() for split, tally in tallies.items()}
        shared = tallies["Validation"].texts_also_in(tallies["Training"])
        summary["validation_texts_also_in_training"] = shared
        beside(report).write_text(json_text(summary), encoding="utf-8")
    return summary


def fits(path: Path, names: Names) -> bool:
    """Whether a file may hold dialogues: not if it is text whose header lacks the columns."""
    if path.suffix.lower() not in (".csv", ".tsv"):
        return True
    try:
        return {names.texts[0], names.label}.issubset(open_sheet(path, names.wanted).columns)
    except InputError:
        return True  # which is for a person to look at


def open_file(path: Path, wanted: set[str], values: bool = False) -> Sheet:
    """Open one file by its suffix; the `wanted` columns and `values` as in open_sheet.

    Raises InputError if the content does not fit the suffix.
    """
    is_json = path.suffix.lower() in (".json", ".jsonl")
    return open_json(path, wanted) if is_json else open_sheet(path, wanted, values)


def dialogues(
    sheet: Sheet, columns: Columns, names: Names, file: FileTally
) -> Iterator[tuple[int, str, str, str | None]]:
    """The usable rows of a sheet as (row, text, label, fine); the tally counts the others.

    Raises InputError for invalid content. Cells that are not text are only counted;
    FileTally.check raises one error for all of them.
    """
    headers = frozenset(filter(None, sheet.columns))
    for number, cells in sheet.rows:
        try:
            parts = [cell_text(sheet, number, column, cells) for column in columns.turns]
            label = columns.label_text(sheet, number, cells)
            fine = "" if columns.fine is None else cell_string(sheet, number, columns.fine, cells)
        except NoTextError:
            add_no_text(sheet, number, cells, columns, file.no_text)
            continue
        parts = [part for part in parts if part]
        text = unicodedata.normalize("NFC", " ".join(parts))
        if not text and not any(cell not in ("", None) for cell in cells):
            continue  # a blank row is not a dialogue
        file.read += 1
        try:
            label, fine, fault = class_of(label, fine, names)
            if fault or not text:
                file.drop("no text" if not text else fault, number)
                continue
            if label in headers and headers.issuperset(map(folded, parts)):
                raise file.second_header(number)
            if "\ufffd" in text:
                file.lose(number)
            file.keep(number, text_hash(folded(text)), label, fine)
        except UnicodeEncodeError:
            raise InputError(
                f"{sheet.where}, {sheet.row_word} {number}: half of a surrogate pair, which "
                "is no character; repair the text"
            ) from None
        yield number, text, label, fine or None


@functools.lru_cache(maxsize=1024)
def class_of(label: str, fine: str, names: Names) -> tuple[str, str, str]:
    """A label and 감정_소분류 from two cells, and why they give no class ("" if they do).

    Raises UnicodeEncodeError for half of a surrogate pair.
    """
    label.encode()
    label, fine = folded(label) if names.own_label else label_name(label), label_name(fine)
    fault = ""
    # Among your own labels, none, NA and - may be classes.
    own = names.own_label and label.lower() not in ERRORS
    if not is_visible(label) if own else says_nothing(label):
        fault = f"label {label!r}" if label.lower() in NOTHING else f"no {names.label}"
    elif says_nothing(fine):
        if names.target == "fine":
            fault = f"fine label {fine!r}" if fine.lower() in NOTHING else f"no {FINE}"
        fine = ""
    return label, fine, fault


def add_no_text(
    sheet: Sheet, number: int, cells: list, columns: Columns, no_text: NoTextCells
) -> None:
    """Count every cell of a row that should hold text and does not."""
    readers = [functools.partial(cell_string, sheet, number, column) for column in columns.turns]
    readers.append(functools.partial(columns.label_text, sheet, number))
    if columns.fine is not None:
        readers.append(functools.partial(cell_string, sheet, number, columns.fine))
    for read in readers:
        try:
            read(cells)
        except NoTextError as error:
            no_text.add(error)


def table_writer(path: Path) -> pq.ParquetWriter:
    """A new table of dialogues, which only its owner can read."""
    path.touch(mode=0o600)
    return pq.ParquetWriter(path, SCHEMA, compression="zstd")


def write_rows(
    split: str,
    rows: Iterator[tuple[int, str, str, str | None]],
    file: FileTally,
    writer: pq.ParquetWriter,
) -> None:
    """Append the (row, text, label, fine) of one file to the table, a group of rows at a time."""
    group: list[tuple] = []
    size = 0

    def flush() -> None:
        columns = [[split] * len(group), *map(list, zip(*group, strict=True))]
        columns.append([file.sheet.where] * len(group))
        writer.write_table(pa.table(columns, schema=SCHEMA))
        group.clear()

    for row in rows:
        group.append(row)
        size += len(row[1])
        if len(group) == ROW_GROUP or size > GROUP_TEXT:
            flush()
            size = 0
    if group:
        flush()


def write_anew(table: Path, drawn: np.ndarray) -> None:
    """Write a table of Training again; the `drawn` rows, bool (rows,), come last as Validation."""
    with table.open("rb") as old:
        table.unlink()  # it stays readable until it is closed
        rows = pq.ParquetFile(old, pre_buffer=False)
        with table_writer(table) as writer:
            for split, side in zip(SPLITS, (~drawn, drawn), strict=True):
                start, held = 0, []
                for batch in rows.iter_batches(ROWS):
                    chosen = batch.filter(pa.array(side[start : start + len(batch)]))
                    start += len(batch)
                    column = pa.repeat(pa.scalar(split), len(chosen))
                    held.append(chosen.set_column(0, "split", column))
                    size = sum(each.nbytes for each in held)
                    if start == len(side) or size > GROUP_TEXT:
                        writer.write_table(pa.Table.from_batches(held))
                        held.clear()


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b; among 20 million texts, the chance of a collision is 1e-5.

    Raises UnicodeEncodeError for half of a surrogate pair, which a JSON escape can produce.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
