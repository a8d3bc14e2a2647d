"""An .xlsx file as rows of cells, safely.

In: a path.
Out: the first visible sheet's name and its rows, numbered as the sheet numbers them. expat reads
the XML as a stream, so memory holds the shared strings and one row, whatever extent the sheet
claims; the limits below end what would still take too long. Nothing in the file is run or
followed: no formula, no macro, no external link, no XML entity.

Not supported: the values of numbers, dates and formulas (such a cell only says what it is),
workbooks of over about 200,000 dialogues (csv has no limit), .xls, .xlsb, and sheets beyond the
first.
"""

import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from xml.parsers import expat

from storyflower.common.errors import InputError, one_line
from storyflower.sheets.sheet import NoText, Sheet, header

# Excel's own limits
MAX_ROWS, MAX_COLUMNS = 2**20, 2**14
# Ours: a hostile file ends within 10 s and 1 GB. 50,000 dialogues need a quarter of each at most.
MAX_UNPACKED = 2**29  # bytes of a workbook's members; a zip bomb has more
MAX_SMALL = 2**23  # bytes of the member that lists the sheets
MAX_TAGS = 12_000_000  # in one member, opening and closing
MAX_TAG = 2**20  # bytes
MAX_NAMES = 10_000  # distinct names of tags and attributes
MAX_DEPTH = 100  # tags within tags
MAX_CELL = 2**20  # characters; Excel stops at 32,767
MAX_HELD = 2**28  # bytes that the shared strings take in memory
MAX_TEXT = 2**27  # characters in the cells of a sheet, each shared string counted where it is used
CHUNK = 2**18  # bytes read at a time

ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")  # how a workbook spells what XML cannot hold
# What zipfile, zlib, expat and int() raise for a file that is not as it should be.
DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    expat.ExpatError,
    EOFError,
    LookupError,  # no such member, shared string or text encoding
    ValueError,
    OverflowError,
    RuntimeError,  # an encrypted member; a compression method that is not known
    OSError,
)


VALUE = NoText("holds a number, date or truth value; write it as text")
ERROR = NoText("holds an error such as #N/A; write it as text")
FORMULA = NoText("is a formula; paste the values over it")


@dataclass(frozen=True)
class Worksheet:
    """One sheet. `rows` yields (row number from 1, cells from column A) for rows that have any.

    A cell is its text, "" when it is empty, or a NoText. `rows` raises InputError like read_sheet.
    """

    name: str
    rows: Iterator[tuple[int, list]]


def read_sheet(path: Path) -> Worksheet:
    """Open the first visible worksheet.

    Raises InputError for a file that is no workbook, is encrypted, damaged or too large.
    """
    refuse_other_formats(path)
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(path, archive)
            name, member, strings = first_visible_sheet(path, archive)
            archive.getinfo(member)
            shared = shared_strings(archive, strings) if strings in archive.NameToInfo else []
    except DAMAGE as error:
        raise refusal(path, error) from None
    return Worksheet(name, read_rows(path, member, shared))


class TooLarge(ValueError):
    """One of the limits above is passed."""


def refusal(path: Path, error: Exception) -> InputError:
    """What is wrong with a workbook, in one line."""
    reason = one_line(error)
    if isinstance(error, TooLarge):
        return InputError(f"{path}: too large ({reason}); split it, or save it as .csv")
    return InputError(f"{path}: damaged or truncated workbook ({reason}); export it again")


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


def check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise for a zip bomb, a password, and what no spreadsheet program writes into its zip."""
    members = archive.infolist()
    # zipfile reads no more of a member than is declared here.
    if sum(member.file_size for member in members) > MAX_UNPACKED:
        raise TooLarge(f"it unpacks to over {MAX_UNPACKED >> 20} MiB")
    for member in members:
        if member.flag_bits & 1:
            raise InputError(f"{path}: the workbook is encrypted; save it without a password")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"compression method {member.compress_type}")


def new_parser(
    start: Callable[[str, dict[str, str]], None], end: Callable[[str], None] | None = None
) -> expat.XMLParserType:
    """A parser for one member; it refuses a document type, the door to entities."""

    def doctype(*_: object) -> None:
        raise ValueError("it has a document type, which no workbook has")

    parser = expat.ParserCreate(intern={})
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    return parser


def parse(parser: expat.XMLParserType, stream: IO[bytes], text: list[str]) -> Iterator[None]:
    """Feed a member to a parser, yielding after each piece; `text` holds a cell's characters.

    Raises TooLarge for what would take more memory or time than any real workbook needs.
    """
    fed = tags = 0
    while chunk := stream.read(CHUNK):
        parser.Parse(chunk, False)
        fed += len(chunk)
        tags += chunk.count(b"<")
        # With each piece expat reads an unfinished tag from its beginning again.
        if fed - parser.CurrentByteIndex > MAX_TAG:
            raise TooLarge(f"a tag of over {MAX_TAG:,} bytes")
        if sum(map(len, text)) > MAX_CELL:
            raise TooLarge(f"a cell of over {MAX_CELL:,} characters")
        if len(parser.intern) > MAX_NAMES:
            raise TooLarge(f"over {MAX_NAMES:,} names of tags")
        if tags > MAX_TAGS:
            raise TooLarge(f"over {MAX_TAGS:,} tags")
        yield
    parser.Parse(b"", True)
    yield


class LocalNames(dict):
    """A tag's name → the name without its prefix: some programs write x:row."""

    def __missing__(self, name: str) -> str:
        self[name] = name.rpartition(":")[2]
        return self[name]


class ColumnIndices(dict):
    """A → 0, AA → 26. Raises ValueError for what is no column."""

    def __missing__(self, letters: str) -> int:
        if not re.fullmatch("[A-Z]{1,3}", letters):
            raise ValueError(f"a cell in column {letters[:10]!r}")
        index = 0
        for letter in letters:
            index = index * 26 + ord(letter) - 64
        self[letters] = index - 1
        return index - 1


def unescaped(text: str) -> str:
    """A cell's text with _x000D_ and the like put back; half of a surrogate pair stays spelt out.

    That is no character, and UTF-8 cannot hold it.
    """

    def character(match: re.Match) -> str:
        code = int(match[1], 16)
        return match[0] if 0xD800 <= code <= 0xDFFF else chr(code)

    return ESCAPED.sub(character, text) if "_x" in text else text


def first_visible_sheet(path: Path, archive: zipfile.ZipFile) -> tuple[str, str, str | None]:
    """Return (sheet name, its zip member, the member with the shared strings if there is one)."""
    relations = {
        relation.get("Id"): relation
        for relation in attributes(archive, "xl/_rels/workbook.xml.rels", "Relationship")
    }

    def member(relation: dict[str, str]) -> str:
        target = relation.get("Target", "")
        return target.lstrip("/") if target.startswith("/") else f"xl/{target}"

    strings = [r for r in relations.values() if r.get("Type", "").endswith("/sharedStrings")]
    for sheet in attributes(archive, "xl/workbook.xml", "sheet"):
        if sheet.get("state", "visible") != "visible":
            continue
        # r:id, whatever the prefix.
        identity = next((value for key, value in sheet.items() if key.endswith(":id")), None)
        name, relation = sheet.get("name", ""), relations.get(identity)
        if relation is None:
            raise InputError(f"{path}: sheet {name!r} is listed but not in the file; export again")
        if relation.get("Type", "").endswith("/worksheet"):  # a chart sheet has no cells
            return name, member(relation), member(strings[0]) if strings else None
    raise InputError(f"{path}: no visible worksheet; unhide the one with the dialogues")


def attributes(archive: zipfile.ZipFile, member: str, tag: str) -> list[dict[str, str]]:
    """The attributes of each element of that name in a small member."""
    found: list[dict[str, str]] = []

    def start(name: str, given: dict[str, str]) -> None:
        if name.rpartition(":")[2] == tag:
            found.append(given)

    if archive.getinfo(member).file_size > MAX_SMALL:
        raise TooLarge(f"{member} has over {MAX_SMALL >> 20} MiB")
    with archive.open(member) as stream:
        for _ in parse(new_parser(start), stream, []):
            pass
    return found


def shared_strings(archive: zipfile.ZipFile, member: str) -> list[str]:
    """The texts that cells refer to by number; each is held once, however many cells show it."""
    strings: list[str] = []
    text: list[str] = []
    local = LocalNames()
    depth = held = 0
    spoken = False  # inside rPh, which says how the text is pronounced

    def start(name: str, _: dict[str, str]) -> None:
        nonlocal depth, spoken
        depth += 1
        tag = local[name]
        if tag == "t" and not spoken:
            parser.CharacterDataHandler = text.append
        elif tag == "rPh":
            spoken = True

    def end(name: str) -> None:
        nonlocal depth, held, spoken
        depth -= 1
        tag = local[name]
        if tag == "t":
            parser.CharacterDataHandler = None
        elif tag == "si":
            string = unescaped("".join(text))
            text.clear()
            strings.append(string)
            held += sys.getsizeof(string)
        elif tag == "rPh":
            spoken = False

    parser = new_parser(start, end)
    with archive.open(member) as stream:
        for _ in parse(parser, stream, text):
            if depth > MAX_DEPTH:
                raise TooLarge(f"over {MAX_DEPTH} tags within tags")
            if held > MAX_HELD:
                raise TooLarge(f"its texts take over {MAX_HELD >> 20} MiB")
    return strings


def read_rows(path: Path, member: str, shared: list[str]) -> Iterator[tuple[int, list]]:
    """The rows of one sheet, as `Worksheet.rows`."""
    done: list[tuple[int, list]] = []  # rows of the current piece
    row: list = []
    text: list[str] = []
    local, columns = LocalNames(), ColumnIndices()
    number, column = 0, -1
    kind = ""  # what a cell says that it holds; "" outside cells
    formula = spoken = False
    depth = seen = 0  # seen: characters

    def start(name: str, given: dict[str, str]) -> None:
        nonlocal number, column, kind, formula, spoken, depth
        depth += 1
        tag = local[name]
        if tag == "c":
            address = given.get("r")
            column = columns[address.rstrip("0123456789")] if address else column + 1
            if not len(row) <= column < MAX_COLUMNS:
                raise ValueError(f"row {number}: column {column + 1} after column {len(row)}")
            kind, formula = given.get("t", "n"), False
            text.clear()
        elif tag == "v" or tag == "t":
            if kind and not spoken:
                parser.CharacterDataHandler = text.append
        elif tag == "row":
            last, number = number, int(given.get("r", number + 1))
            if not last < number <= MAX_ROWS:
                raise ValueError(f"row {number} after row {last}")
            row.clear()
            column = -1
        elif tag == "f":
            formula = True
        elif tag == "rPh":
            spoken = True

    def end(name: str) -> None:
        nonlocal kind, spoken, depth, seen
        depth -= 1
        tag = local[name]
        if tag == "v" or tag == "t":
            parser.CharacterDataHandler = None
        elif tag == "c":
            if text or formula:
                value = FORMULA if formula else cell_value(kind, "".join(text), shared)
                if column > len(row):
                    row.extend([""] * (column - len(row)))
                row.append(value)
                if isinstance(value, str):
                    seen += len(value)
            kind = ""
        elif tag == "row":
            if row:
                done.append((number, row.copy()))
        elif tag == "rPh":
            spoken = False

    try:
        parser = new_parser(start, end)
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            for _ in parse(parser, stream, text):
                if depth > MAX_DEPTH:
                    raise TooLarge(f"over {MAX_DEPTH} tags within tags")
                if seen > MAX_TEXT:
                    raise TooLarge(f"over {MAX_TEXT:,} characters")
                yield from done
                done.clear()
    except DAMAGE as error:
        raise refusal(path, error) from None


def cell_value(kind: str, value: str, shared: list[str]) -> str | NoText:
    """What a cell holds, from its type and its characters. Raises LookupError, ValueError."""
    if kind == "s":
        place = int(value)
        if place < 0:  # which a list would count from its end
            raise LookupError(f"shared string {place}")
        return shared[place]
    if kind in ("inlineStr", "str"):
        return unescaped(value)
    return ERROR if kind == "e" else VALUE


def open_xlsx(path: Path) -> Sheet:
    sheet = read_sheet(path)
    where = f"{path}, sheet {sheet.name!r}"
    for _, cells in sheet.rows:
        if any(cell != "" for cell in cells):
            return Sheet(where, "row", header(cells), sheet.rows)
    raise InputError(f"{where}: the sheet is empty")
