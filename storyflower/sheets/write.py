"""Rows → an .xlsx or .csv file that only its owner can read and that runs nothing when opened.

In: a path, a header and rows of text and numbers.
Out: the file, complete or not at all, with the same bytes for the same input. A text that a
spreadsheet would read as a formula (it begins with =, +, -, @, tab or carriage return) stays text:
in .xlsx every text is a cell of type text, in .csv an apostrophe is put before it.
Not supported: cell formats.
"""

import csv
import datetime
import tempfile
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import xlsxwriter
from xlsxwriter.exceptions import FileCreateError
from xlsxwriter.utility import xl_rowcol_to_cell
from xlsxwriter.worksheet import Worksheet

from storyflower.common.errors import InputError
from storyflower.common.files import replacing

SUFFIXES = (".xlsx", ".csv")
MAX_ROWS = 2**20  # Excel's limit
MAX_UNITS = 32_767  # UTF-16 units in a cell; with more, Excel reports a damaged workbook
FORMULA_STARTS = tuple("=+-@\t\r＝＋－＠")
Row = Sequence[str | float]


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Row]) -> None:
    """Write a header and rows; text becomes text, an int or a float becomes a number.

    Raises InputError for another suffix, for more than an .xlsx can hold, and if the system refuses
    to write; an old file then stays unchanged.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: the name must end in {' or '.join(SUFFIXES)}")
    with replacing() as beside:
        part = beside(path)
        part.touch(mode=0o600)
        (write_csv if suffix == ".csv" else write_xlsx)(path, part, chain([header], rows))


def write_csv(path: Path, part: Path, rows: Iterable[Row]) -> None:
    # With a byte order mark; without it, Excel shows Korean as wrong characters.
    with part.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([harmless(cell) for cell in row] for row in rows)


def harmless(cell: str | float) -> str | float:
    """A cell for csv, with an apostrophe before a text that a spreadsheet would run."""
    dangerous = isinstance(cell, str) and cell.startswith(FORMULA_STARTS)
    return f"'{cell}" if dangerous else cell


def write_xlsx(path: Path, part: Path, rows: Iterable[Row]) -> None:
    """Write a workbook of one sheet to `part`; messages name `path`.

    xlsxwriter keeps the rows in a temporary file until the end. That file is on the same disk as
    the output, so that a disk-full error names the right disk, in a folder only the owner can read.
    """
    options = {"constant_memory": True, "strings_to_numbers": False}
    options |= {"strings_to_formulas": False, "strings_to_urls": False}
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as own:
        book = xlsxwriter.Workbook(part, {**options, "tmpdir": own})
        book.use_zip64()
        book.set_properties({"created": datetime.datetime(2000, 1, 1)})
        # As if typed after an apostrophe
        as_text = book.add_format({"num_format": "@", "quote_prefix": True})
        sheet = book.add_worksheet(worksheet_class=TextSheet)
        for number, row in enumerate(rows):
            if number >= MAX_ROWS:
                raise InputError(f"{path}: a sheet ends at row {MAX_ROWS:,}; write a .csv")
            for column, cell in enumerate(row):
                if not isinstance(cell, str):
                    sheet.write_number(number, column, cell)
                    continue
                if (units := utf16_units(cell)) > MAX_UNITS:
                    raise InputError(
                        f"{path}: cell {xl_rowcol_to_cell(number, column)} would have {units:,} "
                        f"characters, of which Excel reads {MAX_UNITS:,}; write a .csv"
                    )
                if cell:
                    sheet.write_string(number, column, cell, as_text)
        try:
            book.close()
        except FileCreateError as error:  # wraps the system's own error
            raise error.args[0] from None


class TextSheet(Worksheet):
    """Writes a text that begins with <r> and ends with </r> as text, not as XML."""

    def _xml_rich_inline_string(self, string: str, attributes: Sequence) -> None:
        self._xml_inline_string(string, True, attributes)


def utf16_units(text: str) -> int:
    """The length of a text as Excel counts it: characters above U+FFFF, such as emoji, are two."""
    return len(text) + sum(character > "\uffff" for character in text)
