"""A .csv or .tsv file → a sheet.

In: utf-8 (with or without a byte order mark), cp949, or UTF-16 with a byte order mark. The
separator is a comma, semicolon, tab or bar, found from the header, or the one that a first line
such as sep=; names. Where tabs separate, quotes may be characters of the texts.
Out: its rows, numbered as records, each with at most as many fields as the header.
"""

import codecs
import csv
import io
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TextIO

from storyflower.common.errors import InputError
from storyflower.sheets.sheet import HEADER_ROWS, Sheet, check_above, find_header, header, note

MAX_RECORD = 2**22  # characters in a line of csv or jsonl, or in an item of json
HEAD = 2**20  # the header must be within this many characters
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
QUOTES = "\"'"
LINE_END = re.compile("\r\n|[\r\n]")
SURELY_ROWS = 6  # separators in a cell whose every line has as many as a row; few texts have that
FEW_VALUES = 100  # of a column that may be the label; in other columns, no value is a sign
NUMBER_OR_DATE = re.compile("[0-9][0-9:./-]*")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")  # 40,000원 is one value
Field = tuple[int, str]  # a column's position, and a value in it
# Share of rows with a quoted field above which a tab-separated file was written by a program that
# quotes: nearly 1 there, 0.0002 in a corpus of film reviews that quotes nothing
MANY_QUOTED = 0.1
SEP = re.compile('"?sep=([^\\s"\']|\t)"? *[\r\n]', re.IGNORECASE)  # Excel's optional first line


@dataclass(frozen=True)
class Dialect:
    """How a file separates and quotes its fields; arguments of csv.reader."""

    delimiter: str = ","
    quotechar: str | None = '"'  # None: quotes are characters like others

    def reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        # A blank before a quote is a common mistake. Without skipinitialspace, the quote would be
        # part of the text, and the next comma would end the field.
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quotechar,
            quoting=csv.QUOTE_MINIMAL if self.quotechar else csv.QUOTE_NONE,
            skipinitialspace=True,
            strict=True,
        )

    def __str__(self) -> str:
        return DELIMITERS.get(self.delimiter, repr(self.delimiter))


@dataclass(frozen=True)
class Header:
    """A header's record number (from 1), its cells, and the records above it."""

    row: int
    cells: list[str]
    above: list[tuple[int, list[str]]]

    @cached_property
    def names(self) -> list[str]:
        return header(self.cells)

    @cached_property
    def named(self) -> int:
        """How many columns there are up to the last one that has a name."""
        return max((index for index, name in enumerate(self.names, start=1) if name), default=0)


@dataclass(frozen=True)
class BadByte:
    """The first byte of a file that is invalid in an encoding."""

    offset: int  # bytes before it
    line: int  # from 1
    after_hangul: bool  # whether there is Hangul (or other non-ASCII text) before it


def open_csv(path: Path, wanted: Set[str]) -> Sheet:
    """Open a file whose header should name the `wanted` columns.

    Raises InputError for a file that is not text or has dialogues above its header. `rows` raises
    it for broken quoting and for a row whose number of fields does not fit the header.
    """
    csv.field_size_limit(MAX_RECORD)  # characters in a cell; csv's default is 131,072
    encoding, bad = text_encoding(path)
    if bad:
        raise bad_byte(path, encoding, bad, wanted)
    dialect, head = find_dialect(path, encoding, wanted)
    if dialect.delimiter == "\t" and quotes_are_text(path, encoding, dialect, head):
        dialect = Dialect("\t", None)
        note(f"{path}: quotes are read as parts of the texts, for they do not enclose fields")
    check_above(str(path), head.names, head.row, head.above)
    if head.above:
        note(f"{path}: the header is row {head.row}; what stands above it is not read")
    below = partial(rows_below, path, encoding, dialect, head)
    return Sheet(str(path), "row", head.names, below(), head.cells, below)


def rows_below(
    path: Path, encoding: str, dialect: Dialect, head: Header
) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header.

    Raises InputError if a row has too many or too few fields, and behind the last row if a quote
    seems to have swallowed rows. In a file that puts other fields in quotes where they need them, a
    program has written the quotes, and doubles those in a text.
    """
    fields = len(head.cells)
    doubtful: dict[int, list[Field]] = {}
    quoted = 0  # fields that need quotes, and are not in doubt
    for number, cells in itertools.islice(records(path, encoding, dialect), head.row, None):
        if len(cells) != fields and not fits(cells, head):
            if not cells:
                continue
            raise InputError(
                f"{path}, row {number}: it has {len(cells)} fields and the header (row "
                f"{head.row}) {fields}; a text with a {dialect} or a line break in it needs "
                "quotes around it"
            )
        for index, cell in enumerate(cells):
            broken = "\n" in cell or "\r" in cell
            if broken and (inner := swallowed(cells, index, head, dialect)):
                doubtful.setdefault(number, []).extend(inner)
            elif broken or dialect.delimiter in cell:
                quoted += 1
        yield number, cells
    if doubtful and quoted <= len(doubtful):
        rows = itertools.islice(records(path, encoding, dialect), head.row, None)
        if number := first_swallowing(rows, doubtful):
            raise InputError(
                f"{path}, row {number}: the lines of a field in quotes look like rows; remove the "
                "quote before it, or write the field on one line"
            )


def fits(cells: list[str], head: Header) -> bool:
    """Whether a row has the header's width; drops extra empty fields at its end.

    Fields of unnamed columns at the end may be missing.
    """
    fields = len(head.cells)
    if len(cells) != fields:
        while cells and not cells[-1].strip() and (len(cells) > fields or len(cells) == 1):
            cells.pop()  # an empty field, from a separator at the end of the line
    return head.named <= len(cells) <= fields and cells != []


def swallowed(cells: list[str], index: int, head: Header, dialect: Dialect) -> list[Field]:
    """The fields in a cell's lines, if each line would be a row; [] if they are a text's lines.

    A quote at the start of a text swallows all up to a quote at the end of another one. People put
    a blank behind a comma, which few programs do.
    """
    lines_of_cell = LINE_END.split(THOUSANDS.sub("", cells[index]))
    first, *lines = (line.split(dialect.delimiter) for line in lines_of_cell)
    if not lines or head.named < 2:
        return []
    *whole, last = lines
    rows = [cells[:index] + first, *filter(any, whole), last + cells[index + 1 :]]
    if not all(fits(row, head) for row in rows):
        return []
    inner = [*enumerate(first[1:], index + 1)]
    inner += [field for line in lines for field in enumerate(line[: len(head.cells)])]
    inner = [(column, value) for column, value in inner if value.strip()]
    spaced = any(column and value[0].isspace() for column, value in inner)
    return inner if any(column for column, _ in inner) and not spaced else []


def first_swallowing(
    rows: Iterator[tuple[int, list[str]]], doubtful: dict[int, list[Field]]
) -> int | None:
    """The number of the first row of those in doubt that is sure to have swallowed others.

    A sign is that there are many separators; a value that other rows have, too, in a column of few
    values such as the labels; or a number or date between those of this row and of the next one.
    """
    values: defaultdict[int, Counter[str]] = defaultdict(Counter)
    last, before = 0, []
    for number, cells in rows:
        inner = doubtful.get(last, ())
        if any(between(before, value, cells, column) for column, value in inner):
            return last
        last, before = number, cells
        for column, value in enumerate(cells):
            if len(values[column]) <= FEW_VALUES:
                values[column][value] += 1
    for number, inner in doubtful.items():
        if sum(column > 0 for column, _ in inner) >= SURELY_ROWS:
            return number
        if any(len(values[at]) <= FEW_VALUES and values[at][value] > 1 for at, value in inner):
            return number
    return None


def between(before: list[str], value: str, after: list[str], column: int) -> bool:
    """Whether a number or a date is one between those of the rows before and after it."""
    found = [before[column : column + 1], [value], after[column : column + 1]]
    if not all(map(NUMBER_OR_DATE.fullmatch, itertools.chain(*found))) or not all(found):
        return False
    first, middle, last = ((len(text), text) for (text,) in found)
    return first < middle < last


def find_dialect(path: Path, encoding: str, wanted: Set[str]) -> tuple[Dialect, Header]:
    """Read the start of a file in each dialect; choose the one that finds the most wanted names.

    If none finds any, the first row that is not blank is the header. Raises InputError for an empty
    file.
    """
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        head = file.read(HEAD)
    sep = SEP.match(head)
    delimiters = sep[1] if sep else "".join(DELIMITERS)
    best, most = None, 0
    for dialect in itertools.starmap(Dialect, itertools.product(delimiters, QUOTES)):
        rows = first_rows(head, dialect)[bool(sep) :]
        if match := find_header([cells for _, cells in rows], wanted):
            index, names = match
            if (named := len(wanted.intersection(names))) > most:
                best, most = (dialect, Header(*rows[index], rows[:index])), named
    if best:
        return best
    dialect = Dialect(delimiters[0])
    for number, cells in records(path, encoding, dialect, errors="replace"):
        if any(cells) and number > bool(sep):
            return dialect, Header(number, cells, [])
    raise InputError(f"{path}: the file is empty")


def quotes_are_text(path: Path, encoding: str, dialect: Dialect, head: Header) -> bool:
    """Whether a file is one row a line, and would not be if its quotes enclosed fields.

    Programs that write tabs often quote nothing. Then a text that begins with a quote would break
    the reading, or swallow the rows up to the next quote. A broken row among quoted ones is told
    from that by the others: a program that quotes does so in most rows, or where a field needs it.
    """
    quote = dialect.quotechar
    enclosed = re.compile(f"{quote}(?:[^{quote}]|{quote}{quote})+{quote}", re.DOTALL)
    lines = quoted = in_need = broken = 0
    for lines, cells in records(path, encoding, Dialect(dialect.delimiter, None)):
        if lines > head.row and cells and len(cells) != len(head.cells):
            return False
        begun = [cell for cell in map(str.rstrip, cells) if cell.startswith(quote)]
        begun = [cell for cell in begun if cell != quote * 2]  # says nothing either way
        quoted += any(cell.endswith(quote) and len(cell) > 1 for cell in begun)
        whole = [cell for cell in begun if enclosed.fullmatch(cell)]
        in_need += sum(re.search(f"[,;{quote}]", cell[1:-1]) is not None for cell in whole)
        broken += len(begun) - len(whole)
    if quoted > MANY_QUOTED * lines or in_need > broken:
        return False
    try:
        return sum(1 for _ in records(path, encoding, dialect)) < lines
    except InputError:
        return True


def first_rows(head: str, dialect: Dialect) -> list[tuple[int, list[str]]]:
    """The first records that are not blank, with their numbers; stops at a broken record."""
    rows = []
    with suppress(csv.Error):  # reading the rows later raises and reports it
        for number, cells in enumerate(dialect.reader(io.StringIO(head, newline="")), start=1):
            if any(cells):
                rows.append((number, cells))
            if len(rows) == HEADER_ROWS:
                break
    return rows


def records(
    path: Path, encoding: str, dialect: Dialect, errors: str = "strict"
) -> Iterator[tuple[int, list[str]]]:
    """All records of a file, numbered from 1; raises InputError for broken quoting."""
    with path.open(encoding=encoding, errors=errors, newline="") as file:
        number = size = 0

        def lines() -> Iterator[str]:
            nonlocal size
            for line in bounded_lines(file):
                size += len(line)
                if size > MAX_RECORD:
                    raise csv.Error(f"over {MAX_RECORD:,} characters; does a quote not end?")
                yield line

        try:
            for number, cells in enumerate(dialect.reader(lines()), start=1):
                yield number, cells
                size = 0
        except csv.Error as error:
            raise InputError(f"{path}, row {number + 1}: broken csv ({error})") from None


def bounded_lines(file: TextIO) -> Iterator[str]:
    """The lines of a file; a line longer than MAX_RECORD comes in pieces."""
    while line := file.readline(MAX_RECORD + 1):
        yield line


def text_encoding(path: Path) -> tuple[str, BadByte | None]:
    """The encoding of a file, and the first byte that is invalid in it (None if there is none)."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and start[2:] != b"\0\0":
        return "utf-16", first_bad_byte(path, "utf-16")
    in_utf8 = first_bad_byte(path, "utf-8")
    if in_utf8 is None:
        return "utf-8-sig", None
    in_cp949 = first_bad_byte(path, "cp949")
    # By chance, utf-8 bytes can be valid cp949, but as other characters. Hangul that decodes as
    # utf-8 is no coincidence.
    if in_utf8.after_hangul or (in_cp949 and in_cp949.offset <= in_utf8.offset):
        return "utf-8-sig", in_utf8
    return "cp949", in_cp949


def first_bad_byte(path: Path, encoding: str) -> BadByte | None:
    """Decode a whole file, a piece at a time; None if every byte is valid."""
    decoder = codecs.getincrementaldecoder(encoding)()
    size = line = 0
    after_hangul = False
    with path.open("rb") as file:
        while True:
            piece = file.read(1 << 20)
            size += len(piece)
            try:
                after_hangul |= not decoder.decode(piece, final=not piece).isascii()
            except UnicodeDecodeError as error:
                before = bytes(error.object[: error.start])
                return BadByte(
                    offset=size - len(error.object) + error.start,
                    line=line + before.count(b"\n") + 1,
                    after_hangul=after_hangul
                    or re.search("[가-힣]", before.decode(encoding, "ignore")) is not None,
                )
            line += piece.count(b"\n")
            if not piece:
                return None


def bad_byte(path: Path, encoding: str, bad: BadByte, wanted: Set[str]) -> InputError:
    """The error for a file with an invalid byte; names the row if it can be found.

    Of a file with zero bytes, no cell is to blame.
    """
    row = ""
    if encoding != "utf-16":
        with path.open("rb") as file:
            if b"\0" in file.read(HEAD):  # UTF-16 without its mark, a workbook, a compressed file
                return InputError(
                    f"{path}: neither utf-8 nor cp949, but another encoding or no text; save it as "
                    "CSV UTF-8"
                )
        with suppress(InputError):
            dialect, _ = find_dialect(path, encoding, wanted)
            for number, cells in records(path, encoding, dialect, errors="surrogateescape"):
                if re.search("[\udc80-\udcff]", "".join(cells)):
                    row = f", row {number}"
                    break
    said = "broken UTF-16" if encoding == "utf-16" else "neither utf-8 nor cp949"
    return InputError(
        f"{path}{row}: {said} (byte {bad.offset + 1:,} of the file); "
        "type that cell again and save the file as utf-8"
    )
