"""An .xlsx file as rows of cells, safely.

Enters: a path. Leaves: the first visible sheet's name and its rows, numbered as the sheet numbers
them, and the columns that hold formulas. calamine does the reading (34 MB in about 2 s); before
that, one pass over the sheet's XML bounds its extent, because calamine allocates the rectangle
between the first and the last cell, and finds formulas, because calamine shows only the value
that was cached when the file was last saved. Given up: .xls, .xlsb and sheets beyond the first.
"""

import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import python_calamine
from python_calamine import CalamineWorkbook

from storyflower.errors import InputError

MAX_CELLS = 20_000_000  # the rectangle that calamine allocates, at about 24 bytes a cell
MAX_UNPACKED = 2 * 2**30  # bytes of XML in one workbook; a zip bomb has more
CHUNK = 4 * 2**20

# r="B7" of a cell or r="7" of a row, in whatever tag: an address that is missed could end the
# process, because calamine aborts when its rectangle does not fit into memory.
ADDRESS = re.compile(rb"\br\s*=\s*[\"']([A-Za-z]*)(\d{1,20})[\"']")
FORMULA = re.compile(
    rb"<(?:\w+:)?c\s[^>]*?\br=[\"']([A-Z]{1,3})(\d{1,7})[\"'][^>]*>\s*<(?:\w+:)?f[\s>/]"
)


@dataclass(frozen=True)
class Sheet:
    """One sheet. `rows` yields (row number from 1, cells from column A)."""

    name: str
    rows: Iterator[tuple[int, list]]
    formulas: dict[int, int]  # column from 0 → the first row number with a formula in it


def column_letters(column: int) -> str:
    """0 → A, 25 → Z, 26 → AA."""
    letters = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        letters = chr(65 + rest) + letters
    return letters


def read_sheet(path: Path) -> Sheet:
    """Open the first visible worksheet.

    Raises InputError for a file that is no workbook, is encrypted, damaged, or so large that
    reading it would exhaust memory.
    """
    refuse_other_formats(path)
    try:
        name, formulas = survey(path)
        sheet = CalamineWorkbook.from_path(str(path)).get_sheet_by_name(name)
        rows = enumerate(sheet.iter_rows(), start=1)  # from row 1 wherever the table begins
    except python_calamine.PasswordError:
        raise InputError(f"{path}: the workbook is encrypted; save it without a password") from None
    except (
        python_calamine.CalamineError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        ElementTree.ParseError,
        NotImplementedError,  # a compression method that zipfile lacks
        RuntimeError,  # an encrypted zip member
        zlib.error,
        EOFError,
        KeyError,
        OSError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: damaged or truncated workbook ({reason}); export it again"
        ) from None
    offset = (sheet.start or (0, 0))[1]
    if offset:
        rows = ((number, [""] * offset + cells) for number, cells in rows)
    return Sheet(name, rows, formulas)


def refuse_other_formats(path: Path) -> None:
    """Raise InputError when the file's first bytes are not those of an .xlsx."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return
    if not head:
        raise InputError(f"{path}: the file is empty")
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        raise InputError(
            f"{path}: an encrypted workbook or an old .xls; save it as .xlsx without a password"
        )
    what = (
        "an HTML page"
        if b"<html" in head.lower() or b"<table" in head.lower()
        else "not a workbook"
    )
    raise InputError(f"{path}: {what}, whatever its name says; save it as .xlsx")


def survey(path: Path) -> tuple[str, dict[int, int]]:
    """Name the first visible sheet and find its formulas, in bounded memory.

    Returns (sheet name, column → first row with a formula). Raises InputError when the workbook
    unpacks to more than MAX_UNPACKED bytes or the sheet spans more than MAX_CELLS cells.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED:
            raise InputError(f"{path}: unpacks to over {MAX_UNPACKED >> 30} GiB; not read")
        name, member = first_visible_sheet(path, archive)
        formulas: dict[int, int] = {}
        columns: set[bytes] = set()
        first, last = 1 << 30, 0
        with archive.open(member) as stream:
            rest = b""
            while chunk := stream.read(CHUNK):
                block = rest + chunk
                if addresses := ADDRESS.findall(block):
                    letters, numbers = map(set, zip(*addresses, strict=True))
                    columns |= letters
                    rows = [int(number) for number in numbers]
                    first, last = min(first, *rows), max(last, *rows)
                for match in FORMULA.finditer(block):
                    formulas.setdefault(column_index(match[1]), int(match[2]))
                # A cell's tag may straddle two chunks; no tag is as long as this.
                rest = block[-1024:]
    if columns:
        # A row's address has no letters: column -1, one more than the cells need.
        indices = [column_index(column) for column in columns]
        span = (max(indices) - min(indices) + 1) * (last - first + 1)
        if span > MAX_CELLS:
            raise InputError(
                f"{path}, sheet {name!r}: spans {span:,} cells (limit {MAX_CELLS:,}); "
                "delete stray cells far from the table, or save it as .csv"
            )
    return name, formulas


def first_visible_sheet(path: Path, archive: zipfile.ZipFile) -> tuple[str, str]:
    """Return (sheet name, its zip member)."""
    relations = {
        node.get("Id"): node
        for node in ElementTree.fromstring(archive.read("xl/_rels/workbook.xml.rels"))
    }
    for node in ElementTree.fromstring(archive.read("xl/workbook.xml")).iter():
        if not node.tag.endswith("}sheet") or node.get("state", "visible") != "visible":
            continue
        # r:id; its namespace differs in a workbook saved as "Strict Open XML".
        identity = next((value for key, value in node.items() if key.endswith("}id")), None)
        name, relation = node.get("name", ""), relations.get(identity)
        if relation is None:
            raise InputError(f"{path}: sheet {name!r} is listed but not in the file; export again")
        if relation.get("Type", "").endswith("/worksheet"):  # a chart sheet has no cells
            target = relation.get("Target", "")
            return name, target.lstrip("/") if target.startswith("/") else f"xl/{target}"
    raise InputError(f"{path}: no visible worksheet; unhide the one with the dialogues")


def column_index(letters: bytes) -> int:
    """b"A" → 0, b"AA" → 26; b"" → -1."""
    index = 0
    for letter in letters.upper():
        index = index * 26 + letter - 64
    return index - 1
