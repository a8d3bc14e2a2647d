"""A sheet of a file: its column names, and its rows as they are read.

In: rows of cells from xlsx, csv or json.
Out: the text of a cell, found by the name of its column and never by its position; a number, date
or formula is an error that names file, sheet and row.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from storyflower.common.errors import InputError

AI_HUB = re.compile(  # the column names of its releases
    "번호|연령|성별|상황키워드|신체질환|전체선톡|감정_[대소]분류|(사람|시스템)(문장|응답)[1-4]|value"
)


@dataclass(frozen=True)
class NoText:
    """A cell that holds something else than text, and what is to be said about it."""

    complaint: str


@dataclass(frozen=True)
class Table:
    """One file: where it is, its column names, its rows as (row number, cells)."""

    where: str  # "file" or "file, sheet 'name'", for messages
    row_word: str  # what the numbers count: row or item
    columns: list[str]
    rows: Iterator[tuple[int, list]]


def column_letters(column: int) -> str:
    """0 → A, 25 → Z, 26 → AA."""
    letters = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        letters = chr(65 + rest) + letters
    return letters


def header(cells: list) -> list[str]:
    """Column names, NFC and on one line; an unnamed column is ""."""
    names = ["" if isinstance(cell, NoText) else cell for cell in cells]
    return [" ".join(unicodedata.normalize("NFC", name).split()) for name in names]


def column_of(table: Table, name: str) -> int:
    """Position of a column; raises InputError saying what is there instead.

    Only names that AI Hub uses are repeated: a file without a header begins with somebody's words.
    """
    places = [place for place, column in enumerate(table.columns) if column == name]
    if not places:
        known = [column for column in table.columns if AI_HUB.fullmatch(column)]
        other = [
            column_letters(place)
            for place, column in enumerate(table.columns)
            if column and column not in known
        ]
        found = known + ([f"other names in columns {', '.join(other[:30])}"] if other else [])
        raise InputError(f"{table.where}: no column {name}; found {', '.join(found)}")
    if len(places) > 1:
        raise InputError(f"{table.where}: {len(places)} columns named {name}; keep one")
    return places[0]


def cell_text(table: Table, number: int, column: int, cells: list) -> str:
    """A cell as stripped text, "" when empty; raises InputError for a number, date or bool."""
    cell = cells[column] if column < len(cells) else ""
    if isinstance(cell, str):
        text = cell.strip()
        return "" if text in ("nan", "NaN") else text  # str() of an empty cell, from an export
    if cell is None or cell != cell:  # null or NaN in JSON
        return ""
    if not isinstance(cell, NoText):
        kind = "a list or object" if isinstance(cell, list | dict) else "a number or truth value"
        cell = NoText(f"holds {kind}; write it as text")
    # The kind, not the value: what stands there may be somebody's words or number.
    where = f"{table.where}, {table.row_word} {number}"
    raise InputError(f"{where}: {table.columns[column]} {cell.complaint}")


def is_visible(text: str) -> bool:
    """Whether a text has a character that is neither space, control nor format."""
    return any(unicodedata.category(character)[0] not in "CZ" for character in text)
