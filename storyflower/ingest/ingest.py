"""Workbooks (xlsx, csv, json) → one table of dialogues.

In: a folder with one Training and one Validation file of AI Hub's 감성대화말뭉치, in any of its
releases' layouts.
Out: a Parquet table with the columns split, row, text, label, fine, and a report of what was read
and what was dropped, per reason.
Not supported: the system's turns, and who was speaking.

A value that cannot be right (a number in a text cell, a formula) is an error that names file,
sheet and row. A row that lacks its text or its label is dropped and counted, up to a stated
share.
"""

import hashlib
import os
import unicodedata
from array import array
from collections import Counter
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
from storyflower.sheets.read import check_readable, open_sheet
from storyflower.sheets.sheet import Table, cell_text, column_of, is_visible

SUFFIXES = (".xlsx", ".csv", ".json", ".jsonl")
MAX_CLASSES = 100  # distinct labels; more, and the column holds something else
# Held in memory at a time: this many rows, and about this many characters
ROW_GROUP, GROUP_TEXT = 65536, 2**24


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
    if path.suffix.lower() in (".json", ".jsonl"):
        check_readable(path)
        return open_json(path)
    return open_sheet(path)


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b; two of 20 million texts collide with a chance of 1e-5.

    Raises UnicodeEncodeError for half of a surrogate pair, which JSON escapes can spell.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
