"""An .xlsx file as rows of cells, safely.

Enters: a path. Leaves: the first visible sheet's name and its rows, numbered as the sheet numbers
them, and the columns that hold formulas. calamine does the reading (34 MB in about 2 s); before
that, one pass over the sheet's XML bounds its extent, because calamine allocates the rectangle
between the first and the last cell, and finds formulas, because calamine shows only the value
that was cached when the file was last saved. Given up: .xls, .xlsb and sheets beyond the first.
"""

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import python_calamine
from python_calamine import CalamineWorkbook, SheetTypeEnum, SheetVisibleEnum

from storyflower.errors import InputError

MAX_CELLS = 20_000_000  # the rectangle that calamine allocates, at about 24 bytes a cell
MAX_UNPACKED = 2 * 2**30  # bytes of XML in one workbook; a zip bomb has more
CHUNK = 4 * 2**20

CELL = re.compile(rb"<(?:\w+:)?c\s[^>]*?\br=[\"']([A-Z]{1,3})(\d{1,7})[\"'][^>]*>")
FORMULA = re.compile(CELL.pattern + rb"\s*<(?:\w+:)?f[\s>/]")
RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


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
        rows = enumerate(sheet.iter_rows(), start=1 + (sheet.start or (0, 0))[0])
    except python_calamine.PasswordError:
        raise InputError(f"{path}: the workbook is encrypted; save it without a password") from None
    except (
        python_calamine.CalamineError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        ElementTree.ParseError,
        NotImplementedError,  # a compression method that zipfile lacks
        RuntimeError,  # an encrypted zip member
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
                cells = CELL.findall(block)
                if cells:
                    columns.update(letters for letters, _ in cells)
                    first = min(first, int(cells[0][1]))
                    last = max(last, max(int(row) for _, row in cells))
                for match in FORMULA.finditer(block):
                    formulas.setdefault(column_index(match[1]), int(match[2]))
                # A cell's tag may straddle two chunks; no tag is as long as this.
                rest = block[-1024:]
    if columns:
        indices = [column_index(letters) for letters in columns]
        span = (max(indices) - min(indices) + 1) * max(last - first + 1, 1)
        if span > MAX_CELLS:
            raise InputError(
                f"{path}, sheet {name!r}: spans {span:,} cells (limit {MAX_CELLS:,}); "
                "delete stray cells far from the table, or save it as .csv"
            )
    return name, formulas


def first_visible_sheet(path: Path, archive: zipfile.ZipFile) -> tuple[str, str]:
    """Return (sheet name, its zip member)."""
    metadata = CalamineWorkbook.from_path(str(path)).sheets_metadata
    visible = [
        sheet.name
        for sheet in metadata
        if sheet.visible == SheetVisibleEnum.Visible and sheet.typ == SheetTypeEnum.WorkSheet
    ]
    if not visible:
        raise InputError(f"{path}: no visible worksheet")
    relations = {
        node.get("Id"): node.get("Target", "")
        for node in ElementTree.fromstring(archive.read("xl/_rels/workbook.xml.rels"))
    }
    for node in ElementTree.fromstring(archive.read("xl/workbook.xml")).iter():
        if node.tag.endswith("}sheet") and node.get("name") == visible[0]:
            target = relations.get(node.get(RELATION), "")
            member = target.lstrip("/") if target.startswith("/") else f"xl/{target}"
            return visible[0], member
    raise InputError(f"{path}: sheet {visible[0]!r} is listed but not in the file; export it again")


def column_index(letters: bytes) -> int:
    """b"A" → 0, b"AA" → 26."""
    index = 0
    for letter in letters:
        index = index * 26 + letter - 64
    return index - 1
