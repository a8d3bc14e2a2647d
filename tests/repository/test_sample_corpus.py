"""The corpus that ships: 4,200 dialogues, in the layout and with the dirt of the real one."""

import csv
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import openpyxl
import pytest

from storyflower.ingest import aihub, ingest
from tests.support import HEADER, ROOT, environment_of

FOLDER = ROOT / "data" / "sample"
ROWS = {"Training": 3600, "Validation": 600}


@pytest.fixture(scope="module")
def sheets() -> dict[str, list[tuple]]:
    """Each file's rows as openpyxl, not the project, reads them."""
    result = {}
    for split in ROWS:
        (path,) = FOLDER.glob(f"*_{split}.xlsx")
        book = openpyxl.load_workbook(path, read_only=True)
        result[split] = list(book.worksheets[0].iter_rows(values_only=True))
    return result


@pytest.fixture(scope="module")
def rows(sheets: dict[str, list[tuple]]) -> list[dict]:
    """All dialogues as column → cell, with split and the sheet's row."""
    return [
        {**dict(zip(HEADER, cells, strict=True)), "split": split, "row": number}
        for split, lines in sheets.items()
        for number, cells in enumerate(lines[1:], start=2)
    ]


@pytest.fixture(scope="module")
def situations() -> list[dict[str, str]]:
    with (FOLDER / "situations.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pair(row: dict) -> tuple[str, str]:
    return row["감정_대분류"].strip(), row["감정_소분류"].strip()


def test_rows_and_header(sheets: dict[str, list[tuple]]) -> None:
    assert {split: len(lines) - 1 for split, lines in sheets.items()} == ROWS
    for split, lines in sheets.items():
        assert list(lines[0]) == HEADER  # that of the release of 2022-11-15
        assert [cells[0] for cells in lines[1:]] == list(range(1, ROWS[split] + 1))


def test_every_writer_wrote_every_emotion(rows: list[dict], situations: list[dict]) -> None:
    writer = {(line["split"], int(line["row"])): line["작가"] for line in situations}
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for row in rows:
        counts[row["split"], writer[row["split"], row["row"]]][pair(row)] += 1
    each = {"Training": 5, "Validation": 2}
    assert Counter(split for split, _ in counts) == {"Training": 12, "Validation": 5}
    for (split, _), pairs in counts.items():
        assert pairs == dict.fromkeys(aihub.EMOTIONS.values(), each[split])
    names = {split: {name for where, name in counts if where == split} for split in ROWS}
    assert not names["Training"] & names["Validation"]


def test_one_to_three_human_turns(rows: list[dict]) -> None:
    turns = Counter()
    for row in rows:
        filled = [bool(row[f"사람문장{turn}"]) for turn in (1, 2, 3)]
        assert filled == [bool(row[f"시스템문장{turn}"]) for turn in (1, 2, 3)], row
        assert filled == sorted(filled, reverse=True), row  # no gap
        turns[sum(filled)] += 1
    assert all(turns[count] > 0.1 * len(rows) for count in (1, 2, 3))


def test_dirt_of_the_real_corpus(rows: list[dict]) -> None:
    assert any(row["감정_대분류"] != row["감정_대분류"].strip() for row in rows)
    assert all(row[None] is not None for row in rows)
    assert Counter(type(row["사람문장3"]) for row in rows).keys() == {str, type(None)}


def test_no_situation_twice(situations: list[dict]) -> None:
    for split, count in ROWS.items():
        numbers = [int(line["row"]) for line in situations if line["split"] == split]
        assert numbers == list(range(2, count + 2))  # as the sheet numbers them
    places = defaultdict(set)
    for line in situations:
        assert line["situation"].strip()
        places[line["situation"]].add(line["작가"])
    shared = [situation for situation, writers in places.items() if len(writers) > 1]
    assert len(shared) < 0.01 * len(situations)
    splits = [{line["situation"] for line in situations if line["split"] == s} for s in ROWS]
    assert not splits[0] & splits[1]


def test_the_workbooks_are_what_the_pieces_make(tmp_path: Path) -> None:
    """The same bytes, so that nobody mends a row in the workbook alone."""
    program = ROOT / "data/writers/build.py"
    subprocess.run([sys.executable, program, tmp_path], check=True, capture_output=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name: (FOLDER / name).read_bytes() for name in made} == made


@pytest.mark.slow
def test_what_the_texts_give_away() -> None:
    """The figures of data/sample/README.md."""
    done = subprocess.run(
        [sys.executable, ROOT / "data/writers/measure.py", "--quick"],
        env=environment_of(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=True,
    )
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for line in done.stdout.splitlines():
        assert line in readme
    figures = dict(re.findall(r"^(.+?): ([\d.]+)", done.stdout, re.MULTILINE))
    assert float(figures["name of their own major"]) <= 5
    assert int(figures["most alike pair, character trigrams"]) < 60
    assert figures["situations in both files"] == "0"
    assert float(figures["TF-IDF, 3600 rows, on Validation"]) < 0.95


def test_no_text_stands_in_both_files(tmp_path: Path) -> None:
    report = ingest.ingest(
        FOLDER, tmp_path / "table.parquet", tmp_path / "ingest.json",
        turns=2, target="major", max_dropped=0.0,
    )  # fmt: skip
    assert report["validation_texts_also_in_training"] == 0
    assert all(part["repeated_texts"] == 0 for part in report["splits"].values())
