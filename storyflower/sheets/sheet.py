"""A sheet of a file: its column names, and its rows, read one by one.

In: rows of cells from xlsx, csv or json.
Out: the text of a cell, found by its column's name, never by its position. A number, date or truth
value is an error that names file, sheet, row and column.
"""

import itertools
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field

from storyflower.common.errors import InputError, escaped

AI_HUB = re.compile(  # the column names in AI Hub's releases
    "번호|연령|성별|상황키워드|신체질환|전체선톡|감정_[대소]분류|(사람|시스템)(문장|응답)[1-4]|value"
)
HEADER_ROWS = 20  # the header must be one of the first 20 rows
# What a spreadsheet shows for a formula that fails, such as a text that begins with =; lower case
ERRORS = frozenset(
    ["#n/a", "#name?", "#value!", "#ref!", "#div/0!", "#num!", "#null!", "#spill!", "#calc!"]
    + ["#error!"]
)
# How programs and people write "no value", in lower case. Not "--" or "ㅡㅡ", which are emoticons.
NOTHING = ERRORS.union(
    ["none", "null", "(null)", "\\n", "nan", "-nan", "nat", "na", "n/a", "<na>"],
    ["-", "–", "—", "－"],
)
# Letters and symbols that are invisible: Hangul fillers and the blank Braille pattern
BLANK = re.compile("[\u115f\u1160\u3164\uffa0\u2800]")
# Marks that choose a form of the character before them, such as ❤ in colour; and a joiner
SELECTOR = re.compile("[\ufe00-\ufe0f\u180b-\u180d\u180f\U000e0100-\U000e01ef\u034f]")
HIDDEN = re.compile(f"{BLANK.pattern}|{SELECTOR.pattern}")
MISSING = object()  # the value of a key that a line of jsonl lacks
MAX_NAMED = 10  # cells or rows that one message lists


class NoTextError(InputError):
    """A cell that should hold text and does not; `cell` is its row and column."""

    def __init__(self, where: str, cell: str, complaint: str):
        super().__init__(f"{where}, {cell} {complaint}")
        self.where, self.cell, self.complaint = where, cell, complaint


@dataclass(frozen=True)
class Sheet:
    """One table of a file: where it is, its column names, its rows as (row number, cells).

    `rows` can be read once. `again` reads the file anew, for formats that can.
    """

    where: str  # "file" or "file, sheet 'name'", for messages
    row_word: str  # what the row numbers count: "row" or "item"
    columns: list[str]
    rows: Iterator[tuple[int, list]]
    written: list = field(default_factory=list)  # the header's cells as the file has them
    again: Callable[[], Iterator[tuple[int, list]]] | None = None


def column_letters(column: int) -> str:
    """0 → A, 25 → Z, 26 → AA."""
    letters = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        letters = chr(65 + rest) + letters
    return letters


def folded(text: str) -> str:
    """Make texts that look the same equal: NFC, nothing invisible, runs of white space → one blank.

    For names and comparisons. Half of a surrogate pair stays.
    """
    text = unicodedata.normalize("NFC", text)
    if text.isprintable() and "  " not in text and not HIDDEN.search(text):
        return text.strip()  # the fast path: most texts need no other change
    text = "".join(
        character
        for character in SELECTOR.sub("", BLANK.sub(" ", text))
        if unicodedata.category(character) not in ("Cf", "Cc") or character.isspace()
    )
    return unicodedata.normalize("NFC", " ".join(text.split()))


def header(cells: list) -> list[str]:
    """Column names, folded; AI Hub's names without any white space; "" for an unnamed column.

    A whole number is a name: pandas writes 0, 1, … above a table without names.
    """
    texts = [str(cell) if type(cell) is int else cell for cell in cells]  # a bool is no number here
    names = [folded(text) if isinstance(text, str) else "" for text in texts]
    bare = ["".join(name.split()) for name in names]
    return [
        short if AI_HUB.fullmatch(short) else name for name, short in zip(names, bare, strict=True)
    ]


def find_header(rows: Iterable[list], wanted: Set[str]) -> tuple[int, list[str]] | None:
    """Find the row, of the first 20, that names the most wanted columns: (its index, its names).

    In a tie, the upper row. None if no row names any.
    """
    best, most = None, 0
    for index, cells in enumerate(itertools.islice(rows, HEADER_ROWS)):
        names = header(cells)
        if (named := len(wanted.intersection(names))) > most:
            best, most = (index, names), named
    return best


def check_above(where: str, names: list[str], row: int, above: Iterable[tuple[int, list]]) -> None:
    """Raise InputError for a row above the header with as many filled cells: it may be a dialogue.

    `names` is the header, `row` its number, `above` the (row number, cells) of the rows above it.
    """
    filled = sum(map(bool, names))
    for number, cells in above:
        if sum(cell != "" for cell in cells) >= filled:
            raise InputError(
                f"{where}, row {number}: as full as the header, which is row {row}; were two "
                "files put together? Move the header to the top"
            )


def column_of(sheet: Sheet, name: str) -> int:
    """Position of a column; raises InputError that says which columns the sheet has instead.

    The error repeats only AI Hub's column names: the first row of a file without a header may be
    personal text.
    """
    indices = [index for index, column in enumerate(sheet.columns) if column == name]
    if not indices:
        known = [column for column in sheet.columns if AI_HUB.fullmatch(column)]
        other = [
            column_letters(index)
            for index, column in enumerate(sheet.columns)
            if column and column not in known
        ]
        found = known + ([f"other names in columns {', '.join(other[:30])}"] if other else [])
        raise InputError(f"{sheet.where}: no column {name}; found {', '.join(found) or 'none'}")
    if len(indices) > 1:
        raise InputError(f"{sheet.where}: {len(indices)} columns named {name}; keep one")
    return indices[0]


def cell_text(sheet: Sheet, number: int, column: int, cells: list) -> str:
    """A cell as stripped text, "" if it says nothing; raises InputError like cell_string."""
    text = cell_string(sheet, number, column, cells)
    return "" if says_nothing(text) else text


def cell_string(sheet: Sheet, number: int, column: int, cells: list) -> str:
    """A cell as stripped text, "" when empty.

    Raises NoTextError for a number, date or truth value, and InputError for a second header with
    AI Hub's names.
    """
    cell = cells[column] if column < len(cells) else ""
    if isinstance(cell, str):
        text = cell.strip()
        # Another header may be a word that is also a text; ingest compares its whole rows.
        if text == sheet.columns[column] and AI_HUB.fullmatch(text):
            raise InputError(
                f"{sheet.where}, {sheet.row_word} {number}: a second header; were two files put "
                "together? Remove the row"
            )
        return text
    if cell is None or cell != cell:  # null or NaN in JSON
        return ""
    kind = "list or object" if isinstance(cell, list | dict) else "number, date or truth value"
    # The error names the kind, not the value: the value may be personal data.
    raise NoTextError(
        sheet.where,
        f"{sheet.row_word} {number}: {sheet.columns[column]}",
        f"holds a {kind}; write it as text",
    )


@dataclass
class NoTextCells:
    """Counts the cells of a sheet that should hold text and do not, to report them together."""

    count: int = 0
    first: list[NoTextError] = field(default_factory=list)

    def add(self, error: NoTextError) -> None:
        self.count += 1
        if len(self.first) < MAX_NAMED:
            self.first.append(error)

    def raise_any(self) -> None:
        """Raise NoTextError if there was one such cell, InputError if there were several."""
        if self.count == 1:
            raise self.first[0]
        if self.count:
            cells = "; ".join(error.cell.replace(":", "") for error in self.first)
            more = f"; and {self.count - len(self.first)} more" * (self.count > len(self.first))
            raise InputError(
                f"{self.first[0].where}: {self.count} cells are no text ({cells}{more}); "
                f"the first {self.first[0].complaint}"
            )


def says_nothing(text: str) -> bool:
    """Whether a text is empty, invisible, or one of the ways to write "no value"."""
    if not text:
        return True
    if "가" <= text[0] <= "힣":  # the fast path: most texts begin so, and no entry of NOTHING does
        return False
    return (len(text) < 12 and folded(text).lower() in NOTHING) or not is_visible(text)


def is_visible(text: str) -> bool:
    """Whether a text has a character other than spaces, controls, format and non-spacing marks."""
    return any(
        unicodedata.category(character) != "Mn"
        and unicodedata.category(character)[0] not in "CZ"
        and not BLANK.match(character)
        for character in text
    )


def note(line: str) -> None:
    """Print a note on standard error about how an ambiguous input was understood."""
    print(f"note: {escaped(line)}", file=sys.stderr)
