"""The corpus that ships: 1,500 dialogues, in the layout and with the dirt of the real one."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import openpyxl
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from storyflower.evaluate import baseline
from storyflower.ingest import aihub, ingest
from storyflower.interim.labels import LabelIndex
from tests.support import HEADER, ROOT

FOLDER = ROOT / "data" / "sample"
ROWS = {"Training": 1200, "Validation": 300}
TURNS = ("사람문장1", "사람문장2", "사람문장3")

# The stem of most emotions is their first two syllables; these need another, or several.
STEMS = {
    "슬픔": "슬프|슬픔|슬퍼",
    "두려운": "두려|두렵",
    "스트레스 받는": "스트레스",
    "회의적인": "회의적|회의감",
    "구역질 나는": "구역질",
    "가난한, 불우한": "가난|불우",
    "버려진": "버려진|버림",
    "남의 시선을 의식하는": "시선|의식",
    "기쁨": "기쁨|기쁘|기뻐|기쁜",
    "신이 난": "신이 나|신난|신나",
    "자신하는": "자신감|자신 있|자신있",
}


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
    """All 1,500 dialogues as column → cell, and split."""
    return [
        {**dict(zip(HEADER, cells, strict=True)), "split": split}
        for split, lines in sheets.items()
        for cells in lines[1:]
    ]


def human_text(row: dict) -> str:
    return " ".join(row[turn] for turn in TURNS if row[turn])


def pair(row: dict) -> tuple[str, str]:
    return row["감정_대분류"].strip(), row["감정_소분류"].strip()


def test_rows_and_header(sheets: dict[str, list[tuple]]) -> None:
    assert {split: len(lines) - 1 for split, lines in sheets.items()} == ROWS
    for split, lines in sheets.items():
        assert list(lines[0]) == HEADER  # that of the release of 2022-11-15
        assert [cells[0] for cells in lines[1:]] == list(range(1, ROWS[split] + 1))


def test_every_emotion_equally_often(rows: list[dict]) -> None:
    for split, count in (("Training", 20), ("Validation", 5)):
        counts = Counter(pair(row) for row in rows if row["split"] == split)
        assert set(counts) == set(aihub.EMOTIONS.values())
        assert set(counts.values()) == {count}


def test_two_or_three_human_turns(rows: list[dict]) -> None:
    for row in rows:
        assert row["사람문장1"] and row["사람문장2"], row
        assert row["시스템문장1"] and row["시스템문장2"], row
        assert bool(row["사람문장3"]) == bool(row["시스템문장3"]), row
    third = sum(bool(row["사람문장3"]) for row in rows)
    assert 0.2 * len(rows) < third < 0.8 * len(rows)


def test_dirt_of_the_real_corpus(rows: list[dict]) -> None:
    assert any(row["감정_대분류"] != row["감정_대분류"].strip() for row in rows)
    assert all(row[None] is not None for row in rows)
    assert Counter(type(row["사람문장3"]) for row in rows).keys() == {str, type(None)}


def test_no_two_rows_are_alike(rows: list[dict]) -> None:
    """No pair shares 60% of the character trigrams of the smaller one."""
    texts = [re.sub(r"\s", "", human_text(row)) for row in rows]
    grams = [{text[i : i + 3] for i in range(len(text) - 2)} for text in texts]
    number = {gram: place for place, gram in enumerate(sorted(set().union(*grams)))}
    columns = np.array([number[gram] for row in grams for gram in row])
    sizes = np.array([len(row) for row in grams])
    places = (columns, np.concatenate([[0], np.cumsum(sizes)]))
    matrix = sparse.csr_matrix((np.ones(len(columns), dtype=np.int32), *places))
    shared = sparse.triu(matrix @ matrix.T, k=1).tocoo()
    overlap = shared.data / np.minimum(sizes[shared.row], sizes[shared.col])
    worst = overlap.argmax()
    alike = texts[shared.row[worst]], texts[shared.col[worst]]
    assert overlap[worst] < 0.6, alike


def test_situations_stay_in_their_split() -> None:
    with (FOLDER / "situations.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    situations = {
        split: {line["situation"] for line in lines if line["split"] == split} for split in ROWS
    }
    assert not situations["Training"] & situations["Validation"]
    for split, count in ROWS.items():
        numbers = [int(line["row"]) for line in lines if line["split"] == split]
        assert sorted(numbers) == list(range(2, count + 2))  # as the sheet numbers them
    assert all(line["situation"].strip() for line in lines)


def test_few_rows_name_their_own_emotion(rows: list[dict]) -> None:
    naming = [
        row
        for row in rows
        if any(re.search(STEMS.get(name, name[:2]), human_text(row)) for name in pair(row))
    ]
    assert len(naming) <= 0.15 * len(rows)


def test_linear_baseline_is_neither_lost_nor_done(tmp_path: Path) -> None:
    table = tmp_path / "dialogues.parquet"
    settings = {"turns": 2, "target": "major", "max_dropped": 0.0}
    report = ingest.ingest(FOLDER, table, tmp_path / "ingest.json", **settings)
    assert report["validation_texts_also_in_training"] == 0
    train, test = (pq.read_table(table, filters=[("split", "==", split)]) for split in ROWS)
    index = LabelIndex(dict.fromkeys(train["label"].to_pylist()))
    assert len(index) == 6
    probabilities = baseline.tfidf_logistic_regression(
        train["text"].to_pylist(),
        index.encode(train["label"].to_pylist()),
        test["text"].to_pylist(),
        len(index),
    )
    hits = probabilities.argmax(axis=1) == index.encode(test["label"].to_pylist())
    assert 0.35 <= hits.mean() <= 0.80
