"""Which columns of a sheet make a dialogue: text_columns, turns and label_column of params.yaml.

In: the names, and a sheet.
Out: the positions, which each file may have in an order of its own. For a column that a sheet
lacks, an error says what the sheet has instead and which param to set.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from storyflower.common.errors import InputError
from storyflower.ingest.aihub import FINE, MAJOR
from storyflower.sheets.sheet import (
    AI_HUB,
    Sheet,
    cell_string,
    column_letters,
    column_of,
    header,
    note,
)

# Names that are surely no sentence of a person, for messages: a word or two of ASCII, or what
# Koreans call such columns. A file without a header has personal text in its first row.
PLAIN = re.compile(
    r"[A-Za-z][\w.-]{0,23}( [\w.-]{1,16})?"
    "|(글|문장|텍스트|본문|내용|제목|일기|대화|발화|댓글|리뷰|후기|질문|답변)[0-9]?"
    "|(감정|라벨|레이블|분류|대분류|중분류|소분류|클래스|주제|범주|정답|평점|점수)[0-9]?"
    "|날짜|시간|이름|작성자|아이디|비고",
    re.ASCII,
)


@dataclass(frozen=True)
class Names:
    """The names of a dialogue's columns, folded as `header` folds them."""

    texts: tuple[str, ...]
    label: str
    target: str

    @classmethod
    def of(
        cls, text_columns: str | Sequence[str], label_column: str, *, turns: int, target: str
    ) -> "Names":
        """The first `turns` of `text_columns`, and the label; raises InputError for a twin.

        Prints a note if `turns` leaves one of your own columns unread.
        """
        given = [text_columns] if isinstance(text_columns, str) else text_columns
        *texts, label = header([*given, label_column])
        for name in (label, *texts):
            if [label, *texts].count(name) > 1 or not name:
                raise InputError(
                    f"text_columns and label_column in params.yaml name {name or 'nothing'} "
                    f"{'twice; once is enough' if name else ''}".rstrip()
                )
        names = cls(tuple(texts[:turns]), label, target)
        if (unread := texts[turns:]) and not all(map(AI_HUB.fullmatch, texts)):
            note(f"turns is {turns}: of text_columns, {', '.join(unread)} is not read")
        return names

    @property
    def wanted(self) -> set[str]:
        """What a header should name."""
        return {*self.texts, self.label} | ({FINE} if self.target == "fine" else set())

    @property
    def own_label(self) -> bool:
        """Whether the labels are not AI Hub's."""
        return self.label != MAJOR


@dataclass(frozen=True)
class Columns:
    """The positions of a dialogue's columns in a sheet."""

    turns: list[int]
    label: int
    fine: int | None
    whole_numbers: bool  # whether the label may be one

    @classmethod
    def find(cls, sheet: Sheet, names: Names) -> "Columns":
        """Find the columns by name; raises InputError for one that is missing or there twice."""
        turns = []
        for number, name in enumerate(names.texts):
            listed = [column for column in header(name.split(",")) if column]
            if number and not set(names.texts[number:]).intersection(sheet.columns):
                hint = f"write turns: {number} into params.yaml to do without"
            elif 1 < len(listed) <= 4 and set(listed) <= set(sheet.columns):
                quoted = json.dumps(listed, ensure_ascii=False)  # a name may hold a colon
                hint = f"write text_columns: {quoted} into params.yaml"
            else:
                hint = "set text_columns in params.yaml"
            turns.append(position(sheet, name, hint))
        label = position(sheet, names.label, "set label_column in params.yaml")
        fine = None
        if names.target == "fine" or FINE in sheet.columns:
            fine = position(sheet, FINE, "set target: major in params.yaml to do without")
        return cls(turns=turns, label=label, fine=fine, whole_numbers=names.own_label)

    def label_text(self, sheet: Sheet, number: int, cells: list) -> str:
        """The label's cell as stripped text, where whole numbers are labels, too.

        Raises InputError like cell_string.
        """
        cell = cells[self.label] if self.label < len(cells) else ""
        if self.whole_numbers and type(cell) is int:  # a bool is no number here
            return str(cell)
        return cell_string(sheet, number, self.label, cells)


def position(sheet: Sheet, name: str, hint: str) -> int:
    """As column_of; for a missing column, the error lists the sheet's and ends in the hint.

    It repeats only names that are surely no personal text, and gives the letters of the others.
    """
    if name in sheet.columns:
        return column_of(sheet, name)
    there = [
        column if AI_HUB.fullmatch(column) or PLAIN.fullmatch(column) else ""
        for column in sheet.columns
    ]
    others = [
        column_letters(index)
        for index, column in enumerate(sheet.columns)
        if column and not there[index]
    ]
    listed = [column for column in there if column][:30]
    if others:
        listed.append(f"other names in columns {', '.join(others[:30])}")
    raise InputError(f"{sheet.where}: no column {name}; found {', '.join(listed)}; {hint}")
