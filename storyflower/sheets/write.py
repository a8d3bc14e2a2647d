"""Rows → an .xlsx, .csv, .jsonl or .parquet file that only its owner can read.

In: a path, a header and rows of values as records.py reads them.
Out: the file, complete or not at all, with the same bytes for the same input. Nothing in it runs
when it is opened: a text that a spreadsheet would read as a formula (it begins with =, +, -, @, tab
or carriage return, and is no plain number such as -1.5) stays text. In .xlsx every text is a cell
of type text, in .csv an apostrophe is put before it.
Not supported: cell formats, except those of dates.
"""

import csv
import datetime
import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import xlsxwriter
from xlsxwriter.exceptions import FileCreateError
from xlsxwriter.utility import xl_rowcol_to_cell
from xlsxwriter.worksheet import Worksheet

from storyflower.common.errors import InputError
from storyflower.common.files import replacing
from storyflower.sheets.sheet import MISSING

MAX_ROWS = 2**20  # Excel's limit
MAX_COLUMNS = 2**14  # Excel's limit, too
MAX_UNITS = 32_767  # UTF-16 units in a cell; with more, Excel reports a damaged workbook
EXACT = 2**53  # a float, as Excel stores numbers, holds every whole number up to here
FORMULA_STARTS = tuple("=+-@\t\r＝＋－＠")
NUMBER = re.compile(r"[+-][0-9]+(?:[.,][0-9]+)*(?:[eE][+-]?[0-9]+)?%?")
DATES = {  # type → how Excel shows it
    datetime.datetime: "yyyy-mm-dd hh:mm:ss",
    datetime.date: "yyyy-mm-dd",
    datetime.time: "hh:mm:ss",
    datetime.timedelta: "[h]:mm:ss",
}
ROW_GROUP, GROUP_BYTES = 2**14, 2**26  # of a parquet file, in memory until they are written
Row = Sequence[Any]
Item = TypeVar("Item")


def write_rows(
    path: Path, header: Sequence[str], rows: Iterable[Row], scratch: Path | None = None
) -> None:
    """Write a .csv, .xlsx or .jsonl; text becomes text, an int or a float becomes a number.

    `scratch` is a folder on the output's disk for xlsxwriter's temporary files (default: the
    output's own). Raises InputError for more than an .xlsx can hold, and if the system refuses to
    write; an old file then stays unchanged.
    """
    with replacing() as beside:
        part = beside(path)
        part.touch(mode=0o600)
        if path.suffix.lower() == ".csv":
            write_csv(part, chain([header], rows))
        elif path.suffix.lower() == ".xlsx":
            write_xlsx(path, part, chain([header], rows), scratch or path.parent)
        else:
            write_jsonl(part, header, rows)


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a .parquet whose columns keep their types. Raises InputError as write_rows."""
    with replacing() as beside:
        part = beside(path)
        part.touch(mode=0o600)
        with part.open("wb") as file, pq.ParquetWriter(file, schema) as writer:
            sizes = (ROW_GROUP, GROUP_BYTES)
            for group in groups(batches, sizes, lambda batch: (len(batch), batch.nbytes)):
                writer.write_table(pa.Table.from_batches(group, schema))


def as_text(value: Any) -> str:
    """A value for a cell of text: a date as ISO writes it, a list or dict as JSON."""
    if isinstance(value, str):
        return value
    if value is None or value is MISSING:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, list | dict | tuple):
        return json.dumps(value, ensure_ascii=False, default=as_text)
    return str(value)


def write_csv(part: Path, rows: Iterable[Row]) -> None:
    # With a byte order mark; without it, Excel shows Korean as wrong characters.
    with part.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([harmless(cell) for cell in row] for row in rows)


def harmless(cell: Any) -> str:
    """A cell for csv, with an apostrophe before a text that a spreadsheet would run."""
    return f"'{as_text(cell)}" if would_run(cell) else as_text(cell)


def would_run(cell: Any) -> bool:
    """Whether a spreadsheet would read a text as a formula; a plain number is none."""
    return isinstance(cell, str) and cell.startswith(FORMULA_STARTS) and not NUMBER.fullmatch(cell)


def write_xlsx(path: Path, part: Path, rows: Iterable[Row], scratch: Path) -> None:
    """Write a workbook of one sheet to `part`; messages name `path`.

    xlsxwriter keeps the rows in a temporary file until the end. That file is on the same disk as
    the output, so that a disk-full error names the right disk, in a folder only the owner can read.
    """
    options = {"constant_memory": True, "strings_to_numbers": False}
    options |= {"strings_to_formulas": False, "strings_to_urls": False}
    with tempfile.TemporaryDirectory(prefix=f".{path.name[:40]}.", dir=scratch) as own:
        book = xlsxwriter.Workbook(part, {**options, "tmpdir": own})
        book.use_zip64()
        book.set_properties({"created": datetime.datetime(2000, 1, 1)})
        # As if typed after an apostrophe
        as_typed = book.add_format({"num_format": "@", "quote_prefix": True})
        dates = {kind: book.add_format({"num_format": shown}) for kind, shown in DATES.items()}
        sheet = book.add_worksheet(worksheet_class=TextSheet)
        for number, row in enumerate(rows):
            for column, cell in enumerate(row):
                check_xlsx(path, number, column, cell)
                if isinstance(cell, bool):
                    sheet.write_boolean(number, column, cell)
                elif is_number(cell):
                    sheet.write_number(number, column, cell)
                elif is_date(cell):
                    sheet.write_datetime(number, column, cell, dates[type(cell)])
                elif text := as_text(cell):
                    sheet.write_string(number, column, text, as_typed)
        try:
            book.close()
        except FileCreateError as error:  # wraps the system's own error
            raise error.args[0] from None


def check_xlsx(path: Path, number: int, column: int, cell: Any) -> None:
    """Raise InputError for what a workbook cannot hold at a place; both count from 0."""
    if number >= MAX_ROWS:
        raise InputError(f"{path}: a sheet ends at row {MAX_ROWS:,}; write a .csv")
    if column >= MAX_COLUMNS:
        raise InputError(f"{path}: a sheet ends at column {MAX_COLUMNS:,}; write a .csv")
    if isinstance(cell, float | int):
        return
    text = as_text(cell)
    if len(text) <= MAX_UNITS // 2:  # the fast path: most texts
        return
    units = len(text.encode("utf-16-le", "surrogatepass")) // 2
    if units > MAX_UNITS:
        raise InputError(
            f"{path}: cell {xl_rowcol_to_cell(number, column)} would have {units:,} "
            f"characters, of which Excel reads {MAX_UNITS:,}; write a .csv"
        )


def is_number(cell: Any) -> bool:
    """Whether a workbook holds a value as a number, to the last digit."""
    return (isinstance(cell, int) and abs(cell) <= EXACT) or (
        isinstance(cell, float) and abs(cell) < float("inf")
    )


def is_date(cell: Any) -> bool:
    """Whether a workbook holds a value as a date or time: its calendar starts in 1900."""
    if isinstance(cell, datetime.timedelta):
        return cell >= datetime.timedelta(0)
    if isinstance(cell, datetime.date):
        return cell.year >= 1900 and getattr(cell, "tzinfo", None) is None
    return isinstance(cell, datetime.time) and cell.tzinfo is None


class TextSheet(Worksheet):
    """Writes a text that begins with <r> and ends with </r> as text, not as XML."""

    def _xml_rich_inline_string(self, string: str, attributes: Sequence) -> None:
        self._xml_inline_string(string, True, attributes)


def write_jsonl(part: Path, names: Sequence[str], rows: Iterable[Row]) -> None:
    """One object a line; a MISSING value leaves its key out."""
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=as_text).encode
    with part.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            pairs = zip(names, map(json_value, row), strict=True)
            file.write(encode({name: cell for name, cell in pairs if cell is not MISSING}) + "\n")


def json_value(cell: Any) -> Any:
    """Itself, but an infinite number, which JSON lacks, as text."""
    return str(cell) if isinstance(cell, float) and abs(cell) == float("inf") else cell


def groups(
    items: Iterable[Item], limits: tuple[int, int], weigh: Callable[[Item], tuple[int, int]]
) -> Iterator[list[Item]]:
    """Items in their order; a group ends where the sum of one of its two weights is at a limit."""
    group: list[Item] = []
    sums = (0, 0)
    for item in items:
        group.append(item)
        weights = weigh(item)
        sums = (sums[0] + weights[0], sums[1] + weights[1])
        if sums[0] >= limits[0] or sums[1] >= limits[1]:
            yield group
            group, sums = [], (0, 0)
    if group:
        yield group


def record_batches(schema: pa.Schema, rows: Iterable[Row]) -> Iterator[pa.RecordBatch]:
    """Rows as write_batches takes them; a string column takes any value as text."""
    rows = iter(rows)
    while some := list(islice(rows, 1024)):
        columns = map(array_of, zip(*some, strict=True), schema.types)
        yield pa.record_batch(list(columns), schema=schema)


def array_of(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
    """An array of one type; a MISSING value is null, and strings take any value as text."""
    cells = (None if value is MISSING else value for value in values)
    if pa.types.is_string(kind):
        cells = (None if cell is None else as_text(cell) for cell in cells)
    return pa.array(cells, kind)


class Preview:
    """What writing some rows to a file will meet, seen before the work that fills them.

    In: the header and how many columns will stand behind it, then each row with add(); both raise
    InputError for what an .xlsx cannot hold.
    Out: `rows`; `width`, the columns of the widest row; `guarded`, by column how many cells get an
    apostrophe in a .csv; types(), of the columns in a .parquet.
    """

    def __init__(self, path: Path, header: Sequence[str], added: int):
        self.path, self.added = path, added
        self.rows = -1  # the header is none
        self.width = 0
        self.guarded: Counter[int] = Counter()
        self._kinds: defaultdict[int, set[str]] = defaultdict(set)
        self._suffix = path.suffix.lower()
        self.add(header)

    def add(self, cells: Sequence[Any]) -> None:
        self.rows += 1
        self.width = max(self.width, len(cells))
        if self._suffix == ".csv":
            self.guarded.update(column for column, cell in enumerate(cells) if would_run(cell))
        elif self._suffix == ".xlsx":
            check_xlsx(self.path, self.rows, self.width + self.added - 1, None)
            for column, cell in enumerate(cells):
                check_xlsx(self.path, self.rows, column, cell)
        elif self._suffix == ".parquet" and self.rows:
            for column, cell in enumerate(cells):
                self._kinds[column].add(kind_of(cell))

    def types(self) -> list[pa.DataType]:
        """The type of each column: that of all its values, or string where they differ."""
        kinds = (frozenset(self._kinds[column] - {"nothing"}) for column in range(self.width))
        return [TYPES.get(kind, pa.string()) for kind in kinds]


TYPES = {
    frozenset({"bool"}): pa.bool_(),
    frozenset({"int"}): pa.int64(),
    frozenset({"wide"}): pa.int64(),
    frozenset({"int", "wide"}): pa.int64(),
    frozenset({"float"}): pa.float64(),
    frozenset({"int", "float"}): pa.float64(),
    frozenset({"date"}): pa.date32(),
    frozenset({"datetime"}): pa.timestamp("us"),
    frozenset({"time"}): pa.time64("us"),
}


def kind_of(cell: Any) -> str:
    if cell is None or cell is MISSING:
        return "nothing"
    if isinstance(cell, int) and not isinstance(cell, bool):
        if abs(cell) > EXACT:
            return "wide" if -(2**63) <= cell < 2**63 else "text"
        return "int"
    return type(cell).__name__  # a name that TYPES lacks becomes a string
