"""AI Hub's .json and .jsonl files → a sheet with the columns of its workbooks.

In: one JSON list of dialogues, or one dialogue per line, with either suffix. Only a piece of the
file is in memory at a time.
Out: rows of 감정_대분류, 감정_소분류 and 사람문장1 to 4, numbered as items.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, TextIO

from storyflower.common.errors import InputError
from storyflower.ingest.aihub import EMOTIONS, FINE, MAJOR, TURNS
from storyflower.sheets.read import check_readable
from storyflower.sheets.read_csv import MAX_RECORD, bounded_lines, first_bad_byte
from storyflower.sheets.records import without_twins
from storyflower.sheets.sheet import NOTHING, Sheet, folded

COLUMNS = [MAJOR, FINE, *TURNS]
TURN_KEY = re.compile("HS0[1-4]|SS0[1-9]")  # AI Hub's, of the person and of the system
NUMBERED = re.compile(r"\d[\W_]*\Z")  # another key that ends so may be meant as a turn


def open_json(path: Path, wanted: Set[str]) -> Sheet:
    """Open a file by its content: a list if it begins with "[", else one dialogue per line.

    Raises InputError if another column than AI Hub's is `wanted`. `rows` raises it for anything
    that is not AI Hub's JSON.
    """
    check_readable(path)
    if other := ", ".join(sorted(wanted.difference(COLUMNS))):
        raise InputError(
            f"{path}: no column {other}, for JSON is read as AI Hub's; save other data as .csv, or "
            "move the file away"
        )

    def items() -> Iterator[tuple[int, Any]]:
        number = 0
        try:
            with path.open(encoding="utf-8-sig") as file:
                values = json_list(file) if begins_list(file) else json_lines(file)
                for number, item in enumerate(values, start=1):
                    if item is not BLANK:
                        yield number, item
        except UnicodeDecodeError:
            bad = first_bad_byte(path, "utf-8")
            where = f"{path}, line {bad.line}" if bad else f"{path}"
            raise InputError(f"{where}: not utf-8; AI Hub's JSON is") from None
        except (ValueError, RecursionError) as error:  # ValueError: a number of 4,301 digits
            reason = getattr(error, "msg", error)
            raise InputError(
                f"{path}, item {number + 1}: not valid JSON ({reason}); expected a list of "
                "dialogues, or one a line; was it cut off?"
            ) from None

    def cells(number: int, item: Any) -> list:
        where = f"{path}, item {number}"
        try:
            code = item["profile"]["emotion"]["type"]
            content = item["talk"]["content"]
            turns = [content.get(f"HS0{turn}", "") for turn in range(1, 5)]
            odd = [key for key in content if not TURN_KEY.fullmatch(key)]
            odd = [key for key in odd if NUMBERED.search(unicodedata.normalize("NFKC", key))]
        except (KeyError, TypeError, AttributeError):
            raise InputError(
                f"{where}: expected profile.emotion.type and talk.content.HS01, as in AI Hub's "
                "JSON; save other data as csv"
            ) from None
        if odd:  # its turn would be lost without a word
            raise InputError(
                f"{where}: talk.content has {odd[0]!r}; AI Hub's keys are HS01 to HS04"
            )
        if not isinstance(code, str):
            raise InputError(f"{where}: profile.emotion.type is no text, expected E10-E69")
        code = folded(code)
        if code in EMOTIONS:
            return [*EMOTIONS[code], *turns]
        if not code or code.lower() in NOTHING:  # this row is dropped, with the code as the reason
            return [code, code, *turns]
        raise InputError(f"{where}: unknown emotion code in profile.emotion.type, not E10-E69")

    return Sheet(str(path), "item", COLUMNS, ((n, cells(n, item)) for n, item in items()))


BLANK = object()  # an empty line of a jsonl file


def begins_list(file: TextIO) -> bool:
    """Whether a file begins with "["; then it is read past it, else it is rewound."""
    while (character := file.read(1)) and character in " \t\r\n":
        pass
    if character != "[":
        file.seek(0)
    return character == "["


def json_lines(file: TextIO) -> Iterator[Any]:
    """One value per line. Raises ValueError and RecursionError, like json_list."""
    for line in bounded_lines(file):
        if len(line) > MAX_RECORD:
            raise ValueError(f"over {MAX_RECORD:,} characters")
        yield json.loads(line, object_pairs_hook=without_twins) if line.strip() else BLANK


def json_list(file: TextIO) -> Iterator[Any]:
    """The elements of the list that has begun; only a piece of the file is in memory at a time."""
    decode = json.JSONDecoder(object_pairs_hook=without_twins).raw_decode
    blank = re.compile(r"[ \t\r\n]*")
    text, position, expected = "", 0, "first"  # then "," and "item" in turn, and at last "end"
    while piece := file.read(MAX_RECORD // 4):
        text, position = text[position:] + piece, 0
        while (position := blank.match(text, position).end()) < len(text):
            if expected == "end":
                raise ValueError("something behind the list")
            elif text[position] == "]" and expected != "item":
                position, expected = position + 1, "end"
            elif expected == ",":
                if text[position] != ",":
                    raise ValueError("expected a comma")
                position, expected = position + 1, "item"
            else:
                try:
                    item, stop = decode(text, position)
                except json.JSONDecodeError:
                    if len(text) - position > MAX_RECORD:
                        raise
                    break  # the rest of the item may be in the next piece
                if stop == len(text):
                    break  # the rest of a number, too
                yield item
                position, expected = stop, ","
    if expected != "end":
        decode(text, position)  # raises an error that says why
        raise ValueError("the list does not end")
