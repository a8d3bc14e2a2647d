"""An .xlsx file → a sheet, safely.

In: a path, and the column names that identify the header.
Out: the sheet that has these columns, with its own row numbers. calamine reads the file in a
separate process (xlsx_child.py), with limits on memory and time. This process holds one row at a
time, even if the file is hostile. Nothing in the file is run or followed: no formula, no macro, no
link, no XML entity.

Not supported: formats, formulas (what was saved with them is read), workbooks of over about 500,000
dialogues (csv has no limit), .xls and .xlsb.
"""

import datetime
import json
import select
import subprocess
import sys
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import psutil

from storyflower.common.errors import InputError
from storyflower.sheets import xlsx_child
from storyflower.sheets.sheet import AI_HUB, Sheet, check_above, find_header, header, note

MAX_WAIT = 300  # seconds of wall time that we wait for the process, in total
LOOK = 0.05  # seconds between two checks of a process that sends nothing


@dataclass(frozen=True)
class Worksheet:
    """A visible worksheet: `head`, its first rows that are not empty (20 at most), and all `rows`.

    A row is (its number from 1, its cells from column A). A cell is its text, "" if it is empty; if
    it holds something else, False, or that value where read_workbook was told to read `values`. Of
    a workbook, the rows of only one sheet can be read, and only once. `rows` raises InputError like
    read_workbook.
    """

    name: str
    head: list[tuple[int, list]]
    rows: Iterator[tuple[int, list]]


def read_workbook(path: Path, values: bool = False) -> list[Worksheet]:
    """Open the visible worksheets; with `values`, numbers, dates and truth values are read too.

    Raises InputError for a file that is not a workbook, is encrypted, damaged or too large.
    """
    child = subprocess.Popen(
        # -P: do not import modules from the script's folder or the user's.
        [sys.executable, "-P", xlsx_child.__file__, path, *["values"] * values],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a panic message may quote the file
        bufsize=0,
    )
    replies = messages(path, child)

    def rest(index: int) -> Iterator[tuple[int, list]]:
        with suppress(BrokenPipeError):  # the process has ended; `replies` raises the error
            child.stdin.write(f"{index}\n".encode())
        for number, cells in iter(replies.__next__, None):
            yield number, list(map(python_value, cells))

    sheets = []
    for name, rows in iter(replies.__next__, None):
        head = [(number, list(map(python_value, cells))) for number, cells in rows]
        sheets.append(Worksheet(name, head, chain(head, rest(len(sheets)))))
    return sheets


def python_value(cell: Any) -> Any:
    """A cell as the child sends it → a str, int, float, bool, or an object of datetime."""
    if not isinstance(cell, list):
        return cell
    kind, value = cell
    if kind == "timedelta":
        return datetime.timedelta(seconds=value)
    return getattr(datetime, kind).fromisoformat(value)


def messages(path: Path, child: subprocess.Popen) -> Iterator[Any]:
    """The messages of the process; closing this iterator ends the process.

    Raises InputError if the process refuses the file, uses too much time or memory, or dies.
    """
    held = bytearray()
    try:
        for piece in pieces(path, child):
            held += piece
            if b"\n" not in piece:
                continue
            *lines, held = held.split(b"\n")
            for message in map(json.loads, lines):
                if isinstance(message, dict):
                    raise InputError(f"{path}: {message['refused']}")
                yield message
        if child.wait() > 0:  # below 0 if a signal ended it
            raise InputError(
                f"{path}: {sys.executable} cannot start what reads workbooks; does it have "
                "python-calamine?"
            )
        raise too_much(path)
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def pieces(path: Path, child: subprocess.Popen) -> Iterator[bytes]:
    """The process's output as it arrives; raises InputError if it uses too much time or memory.

    The process limits itself, but not every system enforces a memory limit: macOS does not.
    """
    poll = select.poll()
    poll.register(child.stdout)
    process = psutil.Process(child.pid)
    waited = memory = 0.0
    while True:
        while not poll.poll(LOOK * 1000):
            waited += LOOK
            with suppress(psutil.NoSuchProcess):  # the process has just ended
                memory = process.memory_info().rss
            if waited > MAX_WAIT or memory > xlsx_child.MEMORY:
                raise too_much(path)
        if not (piece := child.stdout.read(2**16)):
            return
        yield piece


def too_much(path: Path) -> InputError:
    return InputError(
        f"{path}: damaged, or too large to be read in {xlsx_child.MEMORY >> 20:,} MiB and "
        f"{xlsx_child.SECONDS} s (does a cell stand far from the table?); export it again, or save "
        "it as .csv"
    )


def open_xlsx(path: Path, wanted: Set[str], values: bool = False) -> Sheet:
    """Open the one sheet whose header names the `wanted` columns; `values` as in read_workbook.

    Prints a note if it is not the first sheet, if others are not empty, or if its header is not the
    first row. The header is one of the first 20 rows. If no sheet has all the columns, a sheet with
    some is used, or else one that is not empty. Raises InputError if none or several
    fit.
    """
    values = values or any(name.isdecimal() for name in wanted)  # which a header's cell may hold
    sheets = read_workbook(path, values)
    headers = [find_header([cells for _, cells in sheet.head], wanted) for sheet in sheets]
    candidates = [index for index, it in enumerate(headers) if it and wanted <= set(it[1])]
    candidates = candidates or [index for index, it in enumerate(headers) if it]
    candidates = candidates or [index for index, sheet in enumerate(sheets) if sheet.head]
    if not candidates:
        raise InputError(f"{path}, sheet {sheets[0].name!r}: the sheet is empty")
    if len(candidates) > 1:
        raise several(path, [sheets[index] for index in candidates], wanted)
    (chosen,) = candidates
    sheet = sheets[chosen]
    where = f"{path}, sheet {sheet.name!r}"
    index, names = headers[chosen] or (0, header(sheet.head[0][1]))
    row, written = sheet.head[index]
    check_above(where, names, row, sheet.head[:index])
    filled = sum(1 for each in sheets if each.head)
    notes = [f"read from this sheet, of {len(sheets)}"] * (chosen > 0 or filled > 1)
    if index:
        notes.append(f"the header is row {row}; what stands above it is not read")
    if notes:
        note(f"{where}: {'; '.join(notes)}")

    def again() -> Iterator[tuple[int, list]]:
        return islice(read_workbook(path, values)[chosen].rows, index + 1, None)

    return Sheet(where, "row", names, islice(sheet.rows, index + 1, None), written, again)


def several(path: Path, sheets: list[Worksheet], wanted: Set[str]) -> InputError:
    """The error for a workbook in which several sheets fit.

    It repeats only the wanted column names and AI Hub's; other names may be personal text.
    """
    there = []
    for sheet in sheets[:10]:
        rows = [cells for _, cells in sheet.head]
        _, names = find_header(rows, wanted) or (0, header(rows[0]))
        known = [name for name in names if name in wanted or AI_HUB.fullmatch(name)]
        there.append(f"sheet {sheet.name!r} has {', '.join(known) or 'other names'}")
    return InputError(
        f"{path}: {len(sheets)} sheets could be meant, by the columns {', '.join(sorted(wanted))}: "
        f"{'; '.join(there)}; hide or delete all sheets but one"
    )
