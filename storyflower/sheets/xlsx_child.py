"""The separate process that opens a workbook, so that a hostile one cannot harm the main process.

In: the workbook's path as the argument, and "values" behind it or not; then, on standard input,
the index of the wanted sheet.
Out: lines of JSON in UTF-8. First [name, first rows] for each visible worksheet, then null. Then
the other rows of the wanted sheet, then null. A row is [its number, its cells from column A]. A
cell is its text ("" for an empty cell or an error such as #N/A; for a formula, what is saved with
it), or false for a number, date or truth value. With "values", that number or truth value itself,
or [kind, ISO text] for a date, datetime or time and ["timedelta", seconds]. For a file that cannot
be read, the last line is {"refused": why}.

read_xlsx.py runs this as a script, not as a module, and this file imports nothing from the package.
So it starts fast, and never imports a json.py from the user's folder.
"""

import functools
import json
import re
import resource
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import time
from itertools import chain, count, islice
from typing import IO, Any
from xml.etree import ElementTree

from python_calamine import (
    CalamineSheet,
    CalamineWorkbook,
    SheetTypeEnum,
    SheetVisibleEnum,
    WorksheetNotFound,
)

MEMORY = 2**30  # bytes; 200,000 dialogues need a third of it
SECONDS = 60  # of processor time; 200,000 dialogues need 5
MAX_UNPACKED = 2**29  # bytes of a workbook's members; a zip bomb has more
MAX_TEXT = 2**23  # characters in a row, and in the first rows of all sheets together
MAX_COLUMNS = 2**14  # Excel's limit
MAX_NAME = 100  # characters of a sheet's name; Excel allows 31
HEAD_ROWS = 20  # of each sheet
# calamine silently misreads two things: a shared-string index that is not a number is read as 0,
# and a CDATA section is left out. A document type is refused because no real workbook has one.
NO_NUMBER = re.compile(b"""t=["']s["'][^<>]{0,80}><v>(?:[0-9]{10}|[0-9]{0,9}[^0-9<])""")
FOREIGN = (b"<v><![CDATA[", b"<!DOCTYPE")
# A cell with a format and a number below 0. If the format is a date's, Excel shows ###, and
# calamine gives the time of day.
BELOW_0 = re.compile(
    b"""<c (?=[^<>]{0,60}s=)[^<>]{0,40}r=["']([A-Z]{1,3})([0-9]{1,7})["'][^<>]{0,40}>"""
    b"(?:<f(?: [^<>]{0,80})?(?:/>|>[^<>]{0,200}</f>))?<v>(-[0-9][-+.0-9eE]{0,24})<"
)
OVERLAP = 512  # bytes; no match of the patterns above is longer

DAMAGED = "damaged or truncated workbook; export it again"
TOO_LARGE = "too large ({}); split it, or save it as .csv"
OUT_OF_RANGE = (
    "sheet {!r}, row {}: a date or duration that is out of range; format that cell as a number"
)
UNKNOWN_ERROR = (
    "a cell holds an error that Excel does not know, as #ERROR! of Google Sheets; empty that cell"
)


class Refused(Exception):
    """The message says why the file cannot be read and what to do."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    for kind, most in (
        (resource.RLIMIT_DATA, MEMORY),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_CORE, 0),  # a core file would contain personal text
    ):
        with suppress(ValueError, OSError):  # the system refuses, or its limit is already lower
            resource.setrlimit(kind, (most, most))
    try:
        with open(sys.argv[1], "rb") as file:
            answer(file, value if sys.argv[2:] == ["values"] else no_value)
    except Refused as refused:
        say({"refused": str(refused)})
    except MemoryError:
        say({"refused": TOO_LARGE.format(f"it needs over {MEMORY >> 20} MiB of memory")})
    except BaseException as error:  # a panic in calamine is not an Exception
        # Not the error's own message, which may quote the file
        say({"refused": UNKNOWN_ERROR if "cell error" in str(error) else DAMAGED})


def say(message: Any) -> None:
    sys.stdout.buffer.write(json.dumps(message, ensure_ascii=False).encode() + b"\n")


def no_value(_: Any) -> bool:
    return False


def value(cell: Any) -> Any:
    """A cell that is no text, as JSON holds it."""
    if cell != cell:
        return ""
    if isinstance(cell, float):  # as Excel stores every number
        return int(cell) if cell.is_integer() and abs(cell) < 2**63 else cell
    if isinstance(cell, int):  # or a truth value
        return cell
    if hasattr(cell, "total_seconds"):
        return ["timedelta", cell.total_seconds()]
    return [type(cell).__name__, cell.isoformat()]


def answer(file: IO[bytes], no_text: Callable[[Any], Any]) -> None:
    refuse_other_formats(file)
    below_0 = check_members(file, no_text is value)
    file.seek(0)
    with CalamineWorkbook.from_filelike(file) as book:
        sheets = visible_sheets(book, no_text, below_0)
    say(None)
    sys.stdout.flush()
    for row in sheets[int(sys.stdin.readline())]:
        say(row)
    say(None)


def refuse_other_formats(file: IO[bytes]) -> None:
    """Raise Refused if the file's first bytes are not those of an .xlsx."""
    head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return
    if not head:
        raise Refused("the file is empty")
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        raise Refused("an encrypted workbook or an old .xls; save it as .xlsx without a password")
    html = b"<html" in head.lower() or b"<table" in head.lower()
    what = "an HTML page" if html else "not a workbook"
    raise Refused(f"{what}, whatever its name says; save it as .xlsx")


def check_members(file: IO[bytes], values: bool) -> dict[str, dict[int, float]]:
    """Read the whole zip once, because calamine does not detect all damage.

    Returns, with `values`, by sheet and place_of, what BELOW_0 finds. Raises Refused for a zip
    bomb, encryption, or content that no spreadsheet program writes.
    """
    below_0: dict[str, dict[int, float]] = {}
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # zipfile reads no more of a member than the declared size.
        if sum(member.file_size for member in members) > MAX_UNPACKED:
            raise Refused(TOO_LARGE.format(f"it unpacks to over {MAX_UNPACKED >> 20} MiB"))
        # Some programs write backslashes or different case; Excel and calamine accept both.
        names = {member.filename.replace("\\", "/").lower(): member for member in members}
        if "xl/workbook.xml" not in names or len(names) < len(members):
            raise Refused(DAMAGED)
        for name, member in names.items():
            if member.flag_bits & 1:
                raise Refused("the workbook is encrypted; save it without a password")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Refused(DAMAGED)
            is_xml = name.endswith((".xml", ".rels"))
            before = b""
            with archive.open(member) as stream:
                while piece := stream.read(2**18):  # checks the CRC at the end
                    seen = before + piece
                    if is_xml and (
                        NO_NUMBER.search(seen) or any(foreign in seen for foreign in FOREIGN)
                    ):
                        raise Refused(DAMAGED)
                    for letters, row, number in (
                        BELOW_0.findall(seen) if values and b"<v>-" in seen else ()
                    ):
                        place = place_of(int(row), column_of(letters))
                        below_0.setdefault(name, {})[place] = float(number)
                    before = piece[-OVERLAP:]
        if not below_0:
            return {}
        book, links = (
            ElementTree.fromstring(archive.read(names[name]))
            for name in ("xl/workbook.xml", "xl/_rels/workbook.xml.rels")
        )
        parts = {
            link.get("Id"): link.get("Target", "").replace("\\", "/").lower() for link in links
        }
        sheets = {}
        for sheet in book.iter():
            for key, link in sheet.items() if sheet.tag.endswith("}sheet") else ():
                if key.endswith("}id"):
                    name = parts.get(link, "").removeprefix("/xl/")
                    sheets[sheet.get("name")] = below_0.get(f"xl/{name}", {})
        return sheets


def place_of(row: int, column: int) -> int:
    """A cell's place as one number; both count from 1."""
    return row * 2 * MAX_COLUMNS + column


def column_of(letters: bytes) -> int:
    """A → 1, Z → 26, AA → 27."""
    return functools.reduce(lambda number, letter: 26 * number + letter - 64, letters, 0)


def visible_sheets(
    book: CalamineWorkbook,
    no_text: Callable[[Any], Any],
    below_0: dict[str, dict[int, float]],
) -> list[Iterator[tuple[int, list]]]:
    """Send the name and the first rows of each visible worksheet; return their other rows."""
    sheets = []
    held = 0
    for index, sheet in enumerate(book.sheets_metadata):
        # A chart sheet has no cells.
        if sheet.visible != SheetVisibleEnum.Visible or sheet.typ != SheetTypeEnum.WorkSheet:
            continue
        name = sheet.name[:MAX_NAME]
        try:
            found = book.get_sheet_by_index(index)
            rows = rows_of(found, no_text, below_0.get(sheet.name, {}))
        except WorksheetNotFound:
            raise Refused(f"sheet {name!r} is listed but not in the file; export again") from None
        head = list(islice(rows, HEAD_ROWS))
        held += characters(chain.from_iterable(cells for _, cells in head))
        if held > MAX_TEXT:
            raise Refused(TOO_LARGE.format(f"over {MAX_TEXT:,} characters in the first rows"))
        say([name, head])
        sheets.append(rows)
    if not sheets:
        raise Refused("no visible worksheet; unhide the one with the dialogues")
    return sheets


def rows_of(
    sheet: CalamineSheet, no_text: Callable[[Any], Any], below_0: dict[int, float]
) -> Iterator[tuple[int, list]]:
    """The rows that are not empty, with the sheet's own numbers; `no_text` as in no_value."""
    if sheet.start is None:
        return
    left = sheet.start[1]  # iter_rows starts at row 1, but at the first used column
    if left >= MAX_COLUMNS:
        raise Refused(DAMAGED)
    for number, cells in enumerate(converted(sheet), start=1):
        if below_0:
            cells = [
                below_0.get(place_of(number, column), cell) if type(cell) is time else cell
                for column, cell in enumerate(cells, left + 1)
            ]
        cells = [cell if isinstance(cell, str) else no_text(cell) for cell in cells]
        while cells and cells[-1] == "":
            cells.pop()
        if characters(cells) > MAX_TEXT:
            raise Refused(TOO_LARGE.format(f"over {MAX_TEXT:,} characters in row {number}"))
        if cells:
            yield number, [""] * left + cells


def converted(sheet: CalamineSheet) -> Iterator[list]:
    """The rows as calamine converts them; raises Refused for a row that it cannot convert."""
    rows = sheet.iter_rows()
    for number in count(1):
        try:
            cells = next(rows)
        except StopIteration:
            return
        except BaseException as error:
            if isinstance(error, OverflowError) or "out of bounds" in str(error):
                raise Refused(OUT_OF_RANGE.format(sheet.name[:MAX_NAME], number)) from None
            raise
        yield cells


def characters(cells: Iterator) -> int:
    return sum(len(cell) for cell in cells if isinstance(cell, str))


if __name__ == "__main__":
    main()
