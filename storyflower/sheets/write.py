"""Rows → an .xlsx or .csv file that only its owner may read and that runs nothing when opened.

In: a path, a header and rows of text and numbers.
Out: the file, whole or not at all. A text that a spreadsheet would take for a formula (it begins
with =, +, -, @, tab or carriage return) stays text: in .xlsx every text is a cell of type text,
in .csv an apostrophe is put before it.
Not supported: cell formats; and openpyxl, whose streaming writer keeps the rows in a temporary
file until the end, and prints a traceback when a later row is refused.
"""

import csv
import re
import zipfile
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from xml.sax.saxutils import escape

from storyflower.common.errors import InputError
from storyflower.common.files import replacing
from storyflower.sheets.read_xlsx import MAX_ROWS
from storyflower.sheets.sheet import column_letters

SUFFIXES = (".xlsx", ".csv")
MAX_CHARACTERS = 32_767  # in a cell, says Excel; it calls a workbook with more damaged
FORMULA_STARTS = tuple("=+-@\t\r＝＋－＠")
# What XML cannot hold, or would change; and what would be read back as an escape.
UNSPEAKABLE = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
# All that a workbook of one sheet needs. Style 1: text, as if typed behind an apostrophe.
PARTS = {
    "[Content_Types].xml": (
        '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{TYPE}.sheet.main+xml"/>'
        f'<Override PartName="/xl/styles.xml" ContentType="{TYPE}.styles+xml"/>'
        f'<Override PartName="/xl/sheet.xml" ContentType="{TYPE}.worksheet+xml"/></Types>'
    ),
    "_rels/.rels": (
        f'<Relationships xmlns="{RELATIONS}"><Relationship Id="rId1" '
        f'Type="{OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>'
    ),
    "xl/workbook.xml": (
        f'<workbook xmlns="{MAIN}" xmlns:r="{OFFICE}"><sheets>'
        '<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>'
    ),
    "xl/_rels/workbook.xml.rels": (
        f'<Relationships xmlns="{RELATIONS}">'
        f'<Relationship Id="rId1" Type="{OFFICE}/worksheet" Target="sheet.xml"/>'
        f'<Relationship Id="rId2" Type="{OFFICE}/styles" Target="styles.xml"/></Relationships>'
    ),
    "xl/styles.xml": (
        f'<styleSheet xmlns="{MAIN}">'
        '<fonts count="1"><font><sz val="11"/><name val="Calibri"/></font></fonts>'
        '<fills count="2"><fill><patternFill patternType="none"/></fill>'
        '<fill><patternFill patternType="gray125"/></fill></fills>'
        '<borders count="1"><border><left/><right/><top/><bottom/><diagonal/></border></borders>'
        '<cellStyleXfs count="1"><xf/></cellStyleXfs><cellXfs count="2"><xf/>'
        '<xf numFmtId="49" quotePrefix="1" applyNumberFormat="1"/></cellXfs><cellStyles count="1">'
        '<cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles></styleSheet>'
    ),
}


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[str | float]]) -> None:
    """Write a header and rows; text becomes text, an int or a float a number.

    Raises InputError for another suffix, for more than an .xlsx can hold, and when the system
    refuses to write; what was there before then stays.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: the name must end in {' or '.join(SUFFIXES)}")
    with replacing() as beside:
        part = beside(path)
        part.touch(mode=0o600)
        if suffix == ".csv":
            # With a byte order mark, without which Excel takes Korean for something else.
            with part.open("w", encoding="utf-8-sig", newline="") as file:
                writer = csv.writer(file)
                writer.writerow([harmless(cell) for cell in header])
                writer.writerows([harmless(cell) for cell in row] for row in rows)
            return
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in PARTS.items():
                archive.writestr(name, content)
            with archive.open("xl/sheet.xml", "w", force_zip64=True) as sheet:
                sheet.write(f'<worksheet xmlns="{MAIN}"><sheetData>'.encode())
                for number, row in enumerate(chain([header], rows), start=1):
                    if number > MAX_ROWS:
                        raise InputError(f"{path}: a sheet ends at row {MAX_ROWS:,}; write a .csv")
                    sheet.write(row_xml(path, number, row).encode())
                sheet.write(b"</sheetData></worksheet>")


def harmless(cell: str | float) -> str | float:
    """The cell as csv holds it: an apostrophe before what a spreadsheet would run."""
    dangerous = isinstance(cell, str) and cell.startswith(FORMULA_STARTS)
    return f"'{cell}" if dangerous else cell


def row_xml(path: Path, number: int, row: Sequence[str | float]) -> str:
    cells = []
    for column, cell in enumerate(row):
        address = f"{column_letters(column)}{number}"
        if not isinstance(cell, str):
            cells.append(f'<c r="{address}"><v>{cell}</v></c>')
            continue
        if not cell:
            continue
        if len(cell) > MAX_CHARACTERS:
            raise InputError(
                f"{path}: cell {address} would have {len(cell):,} characters, of which Excel reads "
                f"{MAX_CHARACTERS:,}; write a .csv"
            )
        text = escape(UNSPEAKABLE.sub(lambda found: f"_x{ord(found[0]):04X}_", cell))
        cells.append(
            f'<c r="{address}" s="1" t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'
        )
    return f'<row r="{number}">{"".join(cells)}</row>'
