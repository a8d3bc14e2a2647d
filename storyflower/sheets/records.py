"""A .xlsx, .csv, .jsonl or .parquet file → its records with all their columns.

In: a path, and the name of the column that holds the texts.
Out: the names of the columns, the rows with their values, and the texts alone. Every call of `rows`
or `texts` reads the file from its start and holds a piece of it in memory. Nothing is left out but
the rows of a workbook and the lines of a csv or jsonl file that are wholly empty.
A value is a str, int, float, bool, None or an object of datetime; in jsonl and parquet also a list,
a dict or a Decimal. A key that one line of a jsonl file lacks is MISSING there.
Not supported: Parquet from people you do not trust. pyarrow reads it in this process.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from storyflower.common.errors import InputError
from storyflower.sheets import sheet
from storyflower.sheets.read import check_readable, open_sheet
from storyflower.sheets.read_csv import MAX_RECORD, bounded_lines, first_bad_byte
from storyflower.sheets.sheet import MISSING, Sheet

MAX_COLUMNS = 2**14  # Excel's limit
BATCH = 512  # rows of a parquet file in memory; more are no faster, and each may be a long text
Row = tuple[int, list]  # its number, as messages give it, and its values


class Records(ABC):
    """The records of one file; open_records chooses the class.

    `names` are the columns as the file writes them, "" for one without a name. `column` is the
    position of the texts.
    """

    def __init__(self, table: Sheet, names: list[str], wanted: str):
        self._table = table
        self.where = table.where
        self.names = names
        self.column = sheet.column_of(table, sheet.header([wanted])[0])

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Every record, in the file's order. Raises InputError for the first that is broken."""

    def texts(self) -> Iterator[tuple[int, str]]:
        """The text of every record, stripped, "" where there is none; raises InputError."""
        for number, cells in self.rows():
            yield number, self.text(number, cells)

    def text(self, number: int, cells: list) -> str:
        """The text of one record; raises NoTextError for a number, list or anything else."""
        cell = cells[self.column] if self.column < len(cells) else None
        if isinstance(cell, str):
            return cell.strip()
        if cell is MISSING:
            return ""
        return sheet.cell_string(self._table, number, self.column, cells)


class Spreadsheet(Records):
    """A .xlsx or .csv. In a .xlsx a cell without a value is None, in a .csv it is ""."""

    def __init__(self, path: Path, wanted: str):
        table = open_sheet(path, {sheet.header([wanted])[0]}, values=True)
        names = list(map(str, table.written))  # a year above a column is a number, or a date
        super().__init__(table, names, wanted)
        self._empty = "" if path.suffix.lower() == ".csv" else None
        self._first: Iterator[Row] | None = table.rows  # opened already

    def rows(self) -> Iterator[Row]:
        rows, self._first = self._first or self._table.again(), None
        for number, cells in rows:
            if self._empty is None:
                cells = [None if cell == "" else cell for cell in cells]
            cells += [self._empty] * (len(self.names) - len(cells))
            yield number, cells

    def text(self, number: int, cells: list) -> str:
        return sheet.cell_string(self._table, number, self.column, cells)


class JsonLines(Records):
    """One JSON object a line, in utf-8. Its columns are the keys of all lines, as first met."""

    def __init__(self, path: Path, wanted: str):
        self._path = path
        if bad := first_bad_byte(path, "utf-8"):
            raise InputError(f"{path}, row {bad.line}: not utf-8; save the file as utf-8")
        keys: dict[str, None] = {}
        for number, row in self._objects():
            if not row.keys() <= keys.keys():
                keys |= dict.fromkeys(row)
                if len(keys) > MAX_COLUMNS:
                    raise InputError(
                        f"{path}, row {number}: by here there are over {MAX_COLUMNS:,} keys"
                    )
        if not keys:
            raise InputError(f"{path}: the file is empty; expected one JSON object a line")
        names = list(keys)
        table = Sheet(str(path), "row", sheet.header(names), iter(()))
        super().__init__(table, names, wanted)

    def rows(self) -> Iterator[Row]:
        for number, row in self._objects():
            yield number, [row.get(name, MISSING) for name in self.names]

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The objects with the numbers of their lines, from 1."""
        for number, line in self._lines():
            try:
                value = json.loads(
                    line,
                    object_pairs_hook=without_twins,
                    parse_float=finite,
                    parse_constant=nan_is_null,
                )
                if not isinstance(value, dict):
                    raise ValueError("no object")
                if "\\u" in line:
                    json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                reason = "half of a surrogate pair"
            except RecursionError:
                reason = "nested too deep"
            except ValueError as error:
                # Not the whole message of another library, which might quote the line
                reason = getattr(error, "msg", None) or error
                if not isinstance(error, json.JSONDecodeError) and error.args[:1] not in KNOWN:
                    reason = "a number is too long"  # Python's limit of 4,300 digits
            else:
                yield number, value
                continue
            raise InputError(
                f"{self._path}, row {number}: no JSON object ({reason}); "
                'expected one a line, such as {"일기": "…"}'
            )

    def _lines(self) -> Iterator[tuple[int, str]]:
        """The lines that are not blank, as editors number them."""
        # A byte that is bad now is in another file than __init__ saw; score_file refuses that
        with self._path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
            for number, line in enumerate(bounded_lines(file), start=1):
                if len(line) > MAX_RECORD:
                    raise InputError(
                        f"{self._path}, row {number}: over {MAX_RECORD:,} characters in one line"
                    )
                if line.strip():
                    yield number, line


KNOWN = {("no object",), ("a key is there twice",), ("a number is too large",)}


def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ValueError for a repeated key, of which json would take the last."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is there twice")
    return made


def finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError("a number is too large")
    return value


def nan_is_null(word: str) -> None:
    """Python writes NaN into JSON where others write null; an Infinity is refused."""
    if word != "NaN":
        raise ValueError("a number is too large")


class Parquet(Records):
    """A Parquet file; `schema` has the types of its columns."""

    def __init__(self, path: Path, wanted: str):
        self.path = path
        with self._reading(), pq.ParquetFile(path) as file:
            self.schema: pa.Schema = file.schema_arrow
            self.count: int = file.metadata.num_rows
        names = self.schema.names
        super().__init__(Sheet(str(path), "row", sheet.header(names), iter(())), names, wanted)
        kind = self.schema.field(self.column).type
        if not is_text(kind) and not types.is_null(kind):
            raise InputError(
                f"{path}: column {shown(names[self.column])} has the type {shown(kind)}; "
                "the texts must be strings"
            )

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Pieces of the file; with `columns`, only these are read."""
        # With a buffer, a column is read in pieces even where a row group is large.
        # A page that has a checksum, as Spark's have, is read only if it fits.
        options = {"buffer_size": 1 << 20, "page_checksum_verification": True, "pre_buffer": False}
        with self._reading(), pq.ParquetFile(self.path, **options) as file:
            # Of categories, pyarrow makes the whole list anew for each piece
            categories = any(types.is_dictionary(field.type) for field in self.schema)
            yield from file.iter_batches(8 * BATCH if categories else BATCH, columns=columns)

    def rows(self) -> Iterator[Row]:
        """As Records.rows. Raises InputError for a type that only Parquet can hold."""
        start = 1
        for batch in self.batches():
            with self._reading():
                columns = [
                    self._values(field, column, start)
                    for field, column in zip(batch.schema, batch.columns, strict=True)
                ]
            for number, cells in enumerate(zip(*columns, strict=True), start):
                yield number, list(cells)
            start += len(batch)

    def texts(self, decode_all: bool = False) -> Iterator[tuple[int, str]]:
        """As Records.texts; with `decode_all`, damage in any column raises InputError."""
        start, name = 1, self.names[self.column]
        for batch in self.batches(None if decode_all else [name]):
            index = batch.schema.get_field_index(name)
            with self._reading():
                texts = self._values(batch.schema.field(index), batch.column(index), start)
            for number, text in enumerate(texts, start):
                yield number, (text or "").strip()
            start += len(batch)

    def check_types(self) -> None:
        """Raise InputError for a column that no other format can hold."""
        for field in self.schema:
            if only_parquet_holds(field.type):
                name, kind = shown(field.name), shown(field.type)
                raise InputError(
                    f"{self.path}: column {name} has the type {kind}, which only Parquet can hold; "
                    "choose a .parquet as the output, or leave it out"
                )

    def _values(self, field: pa.Field, column: pa.Array, start: int) -> list:
        """A column's values; its first row is number `start`."""
        kind = field.type
        if types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if types.is_timestamp(kind):  # Python's datetime ends at microseconds
            column = column.cast(pa.timestamp("us", kind.tz), safe=False)
        elif types.is_time64(kind) or types.is_duration(kind):
            made = pa.time64("us") if types.is_time64(kind) else pa.duration("us")
            column = column.cast(made, safe=False)
        try:
            values = column.to_pylist()
        except UnicodeDecodeError:
            for number, value in enumerate(column, start):
                try:
                    value.as_py()
                except UnicodeDecodeError:
                    raise InputError(
                        f"{self.path}, row {number}: {shown(field.name)} is not utf-8"
                    ) from None
            raise
        if types.is_floating(kind):
            return [None if value != value else value for value in values]
        return values

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            # Not the library's message, which may quote a value
            if "decrypt" in str(error):
                raise InputError(
                    f"{self.path}: encrypted; write it again without encryption"
                ) from None
            raise InputError(
                f"{self.path}: not a Parquet file, damaged or cut off; write it again"
            ) from None


def shown(name: object) -> str:
    """A column's name or type for a message: on one line, without control characters, not long."""
    return sheet.folded(str(name))[:40] or "without a name"


def is_text(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def only_parquet_holds(kind: pa.DataType, inside: bool = False) -> bool:
    """Whether a type is or has bytes, or is of a kind that has no plain Python value.

    `inside` a list or a dict, also times finer than a microsecond.
    """
    if types.is_dictionary(kind):
        return only_parquet_holds(kind.value_type, inside)
    if types.is_nested(kind) and not types.is_union(kind):
        parts = [kind.field(index).type for index in range(kind.num_fields)]
        return any(only_parquet_holds(part, True) for part in parts)
    if inside and getattr(kind, "unit", None) == "ns":
        return True
    plain = types.is_primitive(kind) and not types.is_interval(kind)
    return not (plain or is_text(kind) or types.is_decimal(kind) or types.is_null(kind))


KINDS = {".xlsx": Spreadsheet, ".csv": Spreadsheet, ".jsonl": JsonLines, ".parquet": Parquet}


def open_records(path: Path, column: str) -> Records:
    """Open a file by its suffix, one of KINDS.

    Raises InputError if it cannot be read, is not what its suffix says, or has not exactly one
    `column`.
    """
    check_readable(path)
    return KINDS[path.suffix.lower()](path, column)
