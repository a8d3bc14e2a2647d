"""Workbooks (xlsx, csv, json) → one table of dialogues.

Enters: a folder with one Training and one Validation file of AI Hub's 감성대화말뭉치, in any of its
releases' layouts. Leaves: a Parquet table with the columns split, row, text, label, fine, and a
report of what was read and what was dropped, per reason. Columns are found by header name, never
by position. Given up: system turns, and who was speaking.

A value that cannot be right (a number in a text cell, a formula) is an error that names file,
sheet and row. A row that lacks its text or its label is dropped and counted, up to a stated share.
"""

import codecs
import csv
import functools
import hashlib
import json
import os
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storyflower.dialogues import SCHEMA, SPLITS
from storyflower.documents import json_text, replacing
from storyflower.errors import InputError
from storyflower.workbook import NoText, column_letters, read_sheet

SUFFIXES = (".xlsx", ".csv", ".json", ".jsonl")
MAJOR, FINE = "감정_대분류", "감정_소분류"
TURN = "사람문장{}"
AI_HUB = re.compile(  # the column names of its releases
    "번호|연령|성별|상황키워드|신체질환|전체선톡|감정_[대소]분류|(사람|시스템)(문장|응답)[1-4]|value"
)
MAX_CLASSES = 100  # distinct labels; more, and the column holds something else
# Held in memory at a time: this many rows, and about this many characters
ROW_GROUP, GROUP_TEXT = 65536, 2**24
MAX_RECORD = 2**22  # characters in a line of csv or jsonl, or in an item of json

# E10-E69 of AI Hub's label JSON: the tens digit gives the major, the ones digit the place here.
# E51 and E59 carry the workbook's names; the code list adds "(당황한)" to set them off.
CODES = {
    "분노": (
        "분노|툴툴대는|좌절한|짜증내는|방어적인|악의적인|안달하는|구역질 나는|노여워하는|성가신"
    ),
    "슬픔": ("슬픔|실망한|비통한|후회되는|우울한|마비된|염세적인|눈물이 나는|낙담한|환멸을 느끼는"),
    "불안": (
        "불안|두려운|스트레스 받는|취약한|혼란스러운|"
        "당혹스러운|회의적인|걱정스러운|조심스러운|초조한"
    ),
    "상처": (
        "상처|질투하는|배신당한|고립된|충격 받은|가난한, 불우한|희생된|억울한|괴로워하는|버려진"
    ),
    "당황": (
        "당황|고립된|남의 시선을 의식하는|외로운|열등감|"
        "죄책감의|부끄러운|혐오스러운|한심한|혼란스러운"
    ),
    "기쁨": ("기쁨|감사하는|신뢰하는|편안한|만족스러운|흥분|느긋|안도|신이 난|자신하는"),
}
EMOTIONS = {
    f"E{tens}{ones}": (major, fine)
    for tens, (major, names) in enumerate(CODES.items(), start=1)
    for ones, fine in enumerate(names.split("|"))
}


@dataclass(frozen=True)
class Table:
    """One file: where it is, its column names, its rows as (row number, cells)."""

    where: str  # "file" or "file, sheet 'name'", for messages
    row_word: str  # what the numbers count: row or item
    columns: list[str]
    rows: Iterator[tuple[int, list]]


def find_files(folder: Path) -> dict[str, Path]:
    """Find the one Training and the one Validation file of a corpus folder.

    Names are compared in NFC and without case, since a macOS unzip writes NFD. Raises InputError
    when a split has no file or several.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; put the Training and the Validation file there, "
            "or set corpus in params.yaml"
        )
    present = [
        path
        for path in sorted(folder.iterdir())
        # "~$" is Excel's lock file beside an open workbook; "._" is a macOS side file.
        if path.is_file() and not path.name.startswith(("~$", "."))
    ]
    for path in present:
        if "\ufffd" in os.fsencode(path.name).decode("utf-8", "replace"):
            # A cp949 name out of a Windows zip, which neither the report nor the table can hold.
            raise InputError(f"{folder}: the file name {path.name!a} is not utf-8; rename the file")
    tables = [path for path in present if path.suffix.lower() in SUFFIXES]
    found = {}
    for split in SPLITS:
        candidates = [
            path
            for path in tables
            if split.lower() in unicodedata.normalize("NFC", path.name).lower()
        ]
        if not candidates:
            names = ", ".join(path.name for path in present[:10]) or "nothing"
            raise InputError(
                f"{folder}: no {split} file ({', '.join(SUFFIXES)} with {split!r} in its name); "
                f"found {names}"
            )
        if len(candidates) > 1:
            names = ", ".join(path.name for path in candidates)
            raise InputError(f"{folder}: {len(candidates)} {split} files ({names}); keep one")
        found[split] = candidates[0]
    if found["Training"] == found["Validation"]:
        raise InputError(f"{found['Training']}: names both splits; give each its own file")
    return found


def ingest(
    folder: Path, output: Path, report: Path, *, turns: int, target: str, max_dropped: float
) -> dict[str, Any]:
    """Read a corpus folder into one Parquet table and one JSON report; return the report.

    `turns` human turns make a text, joined by one space, empty ones left out. `target` "fine" also
    drops rows without 감정_소분류. Raises InputError for bad input; no output is written then.
    """
    summary: dict[str, Any] = {"corpus": folder.name, "turns": turns, "splits": {}}
    hashes: dict[str, np.ndarray] = {}
    tables = {split: open_table(path) for split, path in find_files(folder).items()}
    schema = SCHEMA.with_metadata({split: table.where for split, table in tables.items()})
    with replacing() as beside:
        part = beside(output)
        part.touch(mode=0o600)
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for split, table in tables.items():
                summary["splits"][split], hashes[split] = ingest_split(
                    split, table, writer, turns=turns, target=target, max_dropped=max_dropped
                )
        places = np.searchsorted(hashes["Training"], hashes["Validation"])
        seen = int((hashes["Training"].take(places, mode="clip") == hashes["Validation"]).sum())
        summary["validation_texts_also_in_training"] = seen
        beside(report).write_text(json_text(summary), encoding="utf-8")
    return summary


def ingest_split(
    split: str,
    table: Table,
    writer: pq.ParquetWriter,
    *,
    turns: int,
    target: str,
    max_dropped: float,
) -> tuple[dict[str, Any], np.ndarray]:
    """Write one file's dialogues; return its part of the report and its texts' hashes, sorted."""
    texts_at = [column_of(table, TURN.format(turn)) for turn in range(1, turns + 1)]
    label_at = column_of(table, MAJOR)
    fine_at = column_of(table, FINE) if target == "fine" or FINE in table.columns else None
    dropped: Counter[str] = Counter()
    first_dropped: dict[str, int] = {}
    labels: Counter[str] = Counter()
    hashes = array("Q")
    pending: dict[str, list] = {name: [] for name in SCHEMA.names}
    read = size = 0

    def drop(reason: str, number: int) -> None:
        dropped[reason] += 1
        first_dropped.setdefault(reason, number)

    def flush() -> None:
        pending["split"] = [split] * len(pending["row"])
        writer.write_table(pa.table(pending, schema=writer.schema))
        for values in pending.values():
            values.clear()

    for number, cells in table.rows:
        if not any(cell not in ("", None) for cell in cells):
            continue  # a blank line is no dialogue
        read += 1
        parts = [cell_text(table, number, column, cells) for column in texts_at]
        label = cell_text(table, number, label_at, cells)
        fine = "" if fine_at is None else cell_text(table, number, fine_at, cells)
        text = " ".join(part for part in parts if part)
        if not is_visible(text):
            drop("no text", number)
        elif not label:
            drop(f"no {MAJOR}", number)
        elif target == "fine" and not fine:
            drop(f"no {FINE}", number)
        else:
            try:
                hashes.append(text_hash(text))
                label, fine = label_name(label), label_name(fine)
            except UnicodeEncodeError:
                raise InputError(
                    f"{table.where}, {table.row_word} {number}: half of a surrogate pair, which "
                    "is no character; repair the text"
                ) from None
            labels[label] += 1
            if len(labels) > MAX_CLASSES:
                raise InputError(
                    f"{table.where}, {table.row_word} {number}: the {len(labels)}th label; "
                    f"{MAX_CLASSES} can be learned; does {MAJOR} hold something else?"
                )
            size += len(text)
            pending["row"].append(number)
            pending["text"].append(text)
            pending["label"].append(label)
            pending["fine"].append(fine or None)
            if len(pending["row"]) == ROW_GROUP or size > GROUP_TEXT:
                flush()
                size = 0
    if not read:
        raise InputError(f"{table.where}: holds no dialogue, only the header at most")
    total = dropped.total()
    if total > max_dropped * read:
        reason, number = next(iter(first_dropped.items()))
        counts = ", ".join(f"{count} with {reason}" for reason, count in dropped.items())
        raise InputError(
            f"{table.where}: {total} of {read} rows unusable ({counts}; first {table.row_word} "
            f"{number}: {reason}), above max_dropped {max_dropped:g}; complete them or raise it"
        )
    if total == read:
        raise InputError(f"{table.where}: no usable row")
    flush()
    ordered = np.frombuffer(hashes, dtype=np.uint64)
    ordered.sort()  # in place: 160 MB for 20 million texts, which np.unique would copy
    return {
        "source": table.where,
        "read": read,
        "kept": read - total,
        "dropped": dict(dropped),
        "repeated_texts": int((ordered[1:] == ordered[:-1]).sum()),
        "labels": dict(labels.most_common()),
    }, ordered


def open_table(path: Path) -> Table:
    """Open one file by its suffix; raise InputError when it is not what the suffix says."""
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    suffix = path.suffix.lower()
    if suffix == ".xlsx":
        return open_xlsx(path)
    if suffix == ".csv":
        return open_csv(path)
    return open_json(path)


def open_xlsx(path: Path) -> Table:
    sheet = read_sheet(path)
    where = f"{path}, sheet {sheet.name!r}"
    for _, cells in sheet.rows:
        if any(cell != "" for cell in cells):
            return Table(where, "row", header(cells), sheet.rows)
    raise InputError(f"{where}: the sheet is empty")


def open_csv(path: Path) -> Table:
    csv.field_size_limit(MAX_RECORD)  # characters in a cell; the module's own limit is 131,072
    encoding = text_encoding(path)

    def records() -> Iterator[tuple[int, list]]:
        with path.open(encoding=encoding, newline="") as file:
            number = size = 0

            def lines() -> Iterator[str]:
                nonlocal size
                for line in bounded_lines(file):
                    size += len(line)
                    if size > MAX_RECORD:
                        raise csv.Error(f"over {MAX_RECORD:,} characters; does a quote not end?")
                    yield line

            try:
                for number, cells in enumerate(csv.reader(lines(), strict=True), start=1):
                    yield number, cells
                    size = 0
            except csv.Error as error:
                raise InputError(f"{path}, row {number + 1}: broken csv ({error})") from None

    rows = records()
    for _, cells in rows:
        if any(cells):
            return Table(str(path), "row", header(cells), rows)
    raise InputError(f"{path}: the file is empty")


def bounded_lines(file: TextIO) -> Iterator[str]:
    """The lines of a file; one that is longer than MAX_RECORD comes in pieces."""
    while line := file.readline(MAX_RECORD + 1):
        yield line


def text_encoding(path: Path) -> str:
    """Tell utf-8 (with or without BOM) from cp949 by decoding the whole file, a piece at a time."""
    for encoding in ("utf-8-sig", "cp949"):
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            with path.open("rb") as file:
                while piece := file.read(1 << 20):
                    decoder.decode(piece)
                decoder.decode(b"", final=True)
            return encoding
        except UnicodeDecodeError:
            continue
    raise InputError(f"{path}: neither utf-8 nor cp949; save it as utf-8")


def open_json(path: Path) -> Table:
    columns = [MAJOR, FINE] + [TURN.format(turn) for turn in range(1, 5)]
    lines = path.suffix.lower() == ".jsonl"

    def items() -> Iterator[tuple[int, Any]]:
        number = 0
        try:
            with path.open(encoding="utf-8-sig") as file:
                for number, item in enumerate((json_lines if lines else json_list)(file), start=1):
                    if item is not BLANK:
                        yield number, item
        except UnicodeDecodeError:
            raise InputError(f"{path}: not utf-8; AI Hub's JSON is") from None
        except (ValueError, RecursionError) as error:  # ValueError: a number of 4,301 digits
            reason = getattr(error, "msg", error)
            raise InputError(
                f"{path}, item {number + 1}: not valid JSON ({reason}); was it cut off?"
            ) from None

    def cells(number: int, item: Any) -> list:
        where = f"{path}, item {number}"
        try:
            code = item["profile"]["emotion"]["type"]
            content = item["talk"]["content"]
            turns = [content.get(f"HS0{turn}", "") for turn in range(1, 5)]
        except (KeyError, TypeError, AttributeError):
            raise InputError(
                f"{where}: expected profile.emotion.type and talk.content.HS01, as in AI Hub's JSON"
            ) from None
        if not isinstance(code, str):
            raise InputError(f"{where}: profile.emotion.type is no text, expected E10-E69")
        if code.strip() and code.strip() not in EMOTIONS:
            raise InputError(f"{where}: unknown emotion code in profile.emotion.type, not E10-E69")
        return [*EMOTIONS.get(code.strip(), ("", "")), *turns]

    return Table(str(path), "item", columns, ((n, cells(n, item)) for n, item in items()))


BLANK = object()  # an empty line of a jsonl file


def json_lines(file: TextIO) -> Iterator[Any]:
    """One value a line. Raises ValueError and RecursionError, like json_list."""
    for line in bounded_lines(file):
        if len(line) > MAX_RECORD:
            raise ValueError(f"over {MAX_RECORD:,} characters")
        yield json.loads(line) if line.strip() else BLANK


def json_list(file: TextIO) -> Iterator[Any]:
    """The elements of one JSON list, of which no more than a piece is held in memory."""
    decode, blank = json.JSONDecoder().raw_decode, re.compile(r"[ \t\r\n]*")
    text, place, wanted = "", 0, "["  # wanted: "[", an item, or "," as the sign between two
    while piece := file.read(MAX_RECORD // 4):
        text, place = text[place:] + piece, 0
        while (place := blank.match(text, place).end()) < len(text):
            if wanted == "[":
                if text[place] != "[":
                    raise ValueError("expected a list of dialogues")
                place, wanted = place + 1, "first"
            elif wanted == "end":
                raise ValueError("something behind the list")
            elif text[place] == "]" and wanted != "item":
                place, wanted = place + 1, "end"
            elif wanted == ",":
                if text[place] != ",":
                    raise ValueError("expected a comma")
                place, wanted = place + 1, "item"
            else:
                try:
                    item, stop = decode(text, place)
                except json.JSONDecodeError:
                    if len(text) - place > MAX_RECORD:
                        raise
                    break  # the rest of it may be in the next piece
                if stop == len(text):
                    break  # so may the rest of a number
                yield item
                place, wanted = stop, ","
    if wanted != "end":
        decode(text, place)  # raises, and says why
        raise ValueError("the list does not end")


def header(cells: list) -> list[str]:
    """Column names, NFC and on one line; an unnamed column is ""."""
    names = ["" if isinstance(cell, NoText) else cell for cell in cells]
    return [" ".join(unicodedata.normalize("NFC", name).split()) for name in names]


def column_of(table: Table, name: str) -> int:
    """Position of a column; raises InputError saying what is there instead.

    Only names that AI Hub uses are repeated: a file without a header begins with somebody's words.
    """
    places = [place for place, column in enumerate(table.columns) if column == name]
    if not places:
        known = [column for column in table.columns if AI_HUB.fullmatch(column)]
        other = [
            column_letters(place)
            for place, column in enumerate(table.columns)
            if column and column not in known
        ]
        found = known + ([f"other names in columns {', '.join(other[:30])}"] if other else [])
        raise InputError(f"{table.where}: no column {name}; found {', '.join(found)}")
    if len(places) > 1:
        raise InputError(f"{table.where}: {len(places)} columns named {name}; keep one")
    return places[0]


def cell_text(table: Table, number: int, column: int, cells: list) -> str:
    """A cell as stripped text, "" when empty; raises InputError for a number, date or bool."""
    cell = cells[column] if column < len(cells) else ""
    if isinstance(cell, str):
        text = cell.strip()
        return "" if text in ("nan", "NaN") else text  # str() of an empty cell, from an export
    if cell is None or cell != cell:  # null or NaN in JSON
        return ""
    if not isinstance(cell, NoText):
        kind = "a list or object" if isinstance(cell, list | dict) else "a number or truth value"
        cell = NoText(f"holds {kind}; write it as text")
    # The kind, not the value: what stands there may be somebody's words or number.
    where = f"{table.where}, {table.row_word} {number}"
    raise InputError(f"{where}: {table.columns[column]} {cell.complaint}")


def is_visible(text: str) -> bool:
    """Whether a text has a character that is neither space, control nor format."""
    return any(unicodedata.category(character)[0] not in "CZ" for character in text)


@functools.lru_cache(maxsize=1024)
def label_name(label: str) -> str:
    """A label in NFC, without the "(당황한)" by which the code list tells E51 from E43.

    Raises UnicodeEncodeError for half of a surrogate pair.
    """
    label.encode()
    return unicodedata.normalize("NFC", label).removesuffix("(당황한)").rstrip()


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b; two of 20 million texts collide with a chance of 1e-5.

    Raises UnicodeEncodeError for half of a surrogate pair, which JSON escapes can spell.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
