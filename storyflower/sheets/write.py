"""Rows → an .xlsx or .csv file that only its owner may read and that runs nothing when opened.

In: a path, a header and rows of text and numbers.
Out: the file, whole or not at all. A text that a spreadsheet would take for a formula (it begins
with =, +, -, @, tab or carriage return) stays text: in .xlsx every text is a cell of type text, in
.csv an apostrophe is put before it.
Not supported: cell formats.
"""

import csv
import datetime
import tempfile
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from storyflower.common.errors import InputError
from storyflower.common.files import replacing
from storyflower.sheets.sheet import column_letters

SUFFIXES = (".xlsx", ".csv")
MAX_ROWS = 2**20  # of a sheet, says Excel
MAX_CHARACTERS = 32_767  # in a cell, in UTF-16 units: Excel calls a workbook with more damaged
FORMULA_STARTS = tuple("=+-@\t\r＝＋－＠")
# Text stays text: none of xlsxwriter's guesses. One row is held in memory.
OPTIONS = {
    "constant_memory": True,
    "strings_to_formulas": False,
    "strings_to_urls": False,
    "strings_to_numbers": False,
}
NO_CHARACTERS = str.maketrans("\ufffe\uffff", "\ufffd\ufffd")  # which XML cannot hold


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
        write_workbook(path, part, chain([header], rows))


def write_workbook(path: Path, part: Path, rows: Iterable[Sequence[str | float]]) -> None:
    """Write a workbook of one sheet to `part`; messages name `path`."""
    import xlsxwriter
    from xlsxwriter.exceptions import FileCreateError

    # The rows lie here until the workbook is closed, for its owner alone.
    with tempfile.TemporaryDirectory() as folder:
        book = xlsxwriter.Workbook(part, {**OPTIONS, "tmpdir": folder})
        # No clock: equal rows make equal bytes.
        book.set_properties({"created": datetime.datetime(2000, 1, 1)})
        sheet = book.add_worksheet("Sheet1")
        text = book.add_format({"num_format": "@", "quote_prefix": True})
        for number, row in enumerate(rows):
            if number == MAX_ROWS:
                raise InputError(f"{path}: a sheet ends at row {MAX_ROWS:,}; write a .csv")
            for column, cell in enumerate(row):
                if not isinstance(cell, str):
                    sheet.write_number(number, column, cell)
                elif cell:
                    check_length(path, number, column, cell)
                    sheet.write_string(number, column, cell.translate(NO_CHARACTERS), text)
        try:
            book.close()
        except FileCreateError as error:
            raise error.args[0] from None  # the system's own


def check_length(path: Path, row: int, column: int, cell: str) -> None:
    units = len(cell.encode("utf-16-le", "surrogatepass")) // 2 if len(cell) > 16_000 else 0
    if units > MAX_CHARACTERS:
        raise InputError(
            f"{path}: cell {column_letters(column)}{row + 1} would have {units:,} characters (an "
            f"emoji counts as two), of which Excel reads {MAX_CHARACTERS:,}; write a .csv"
        )


def harmless(cell: str | float) -> str | float:
    """The cell as csv holds it: an apostrophe before what a spreadsheet would run."""
    dangerous = isinstance(cell, str) and cell.startswith(FORMULA_STARTS)
    return f"'{cell}" if dangerous else cell
