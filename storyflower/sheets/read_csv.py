"""A .csv file → a sheet.

In: utf-8 (with or without a byte order mark) or cp949.
Out: its rows, numbered as records.
"""

import codecs
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from storyflower.common.errors import InputError
from storyflower.sheets.sheet import Table, header

MAX_RECORD = 2**22  # characters in a line of csv or jsonl, or in an item of json


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
