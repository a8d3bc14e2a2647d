"""A .xlsx, .csv or .tsv file → a sheet."""

from collections.abc import Set
from pathlib import Path

from storyflower.common.errors import InputError
from storyflower.sheets.read_csv import open_csv
from storyflower.sheets.read_xlsx import open_xlsx
from storyflower.sheets.sheet import Sheet


def open_sheet(path: Path, wanted: Set[str], values: bool = False) -> Sheet:
    """Open one file by its suffix; its header is the row that names the `wanted` columns.

    With `values`, a workbook's numbers, dates and truth values are read; without, each is False
    unless a `wanted` name is a number. Raises InputError if the content does not fit the suffix.
    """
    check_readable(path)
    if path.suffix.lower() == ".xlsx":
        return open_xlsx(path, wanted, values)
    return open_csv(path, wanted)


def check_readable(path: Path) -> None:
    """Raise InputError if the system refuses to open a file."""
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
