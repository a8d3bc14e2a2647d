"""Your own tables: several files, other columns, any labels, and no Validation file."""

import json
import sys
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stages.ingest
import stages.labels
from storyflower.common.errors import InputError, exit_with_line
from storyflower.ingest import ingest as ingest_module
from storyflower.ingest import tally
from storyflower.ingest.split import draw
from storyflower.interim import labels
from tests.ingest.test_ingest import ingest, refusal, table
from tests.support import set_params

OWN = {"text_columns": "document", "label_column": "label"}
DRAWN = {**OWN, "validation_share": 0.2, "seed": 1}


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def two_columns(path: Path, rows: list[tuple[str, str]]) -> Path:
    return write(path, "document,label", *(f"{text},{label}" for text, label in rows))


def numbered(start: int, stop: int) -> list[tuple[str, str]]:
    """Rows of different texts, the labels 0, 1 and 중립 in turn."""
    return [(f"{number}번째 글", ("0", "1", "중립")[number % 3]) for number in range(start, stop)]


def texts(folder: Path, split: str = "Training") -> list[str]:
    return [row["text"] for row in table(folder, split)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    return folder


# Several files


def test_files_are_read_in_the_order_of_their_names(folder: Path) -> None:
    rows = numbered(0, 12)
    two_columns(folder / "b_Training.csv", rows[3:6])
    two_columns(folder / "a_Training.csv", rows[:3])
    write(folder / "c_Training.tsv", "label\tdocument", *(f"{b}\t{a}" for a, b in rows[6:9]))
    book = openpyxl.Workbook()
    for row in [("label", "옛 글", "document"), *((b, 7, a) for a, b in rows[9:])]:
        book.active.append(row)
    book.save(folder / "d_Training.xlsx")
    two_columns(folder / "x_Validation.csv", rows[:2])
    two_columns(folder / "y_Validation.csv", [*rows[3:5], ("", "1")])
    report = ingest(folder, **OWN, max_dropped=0.4)
    assert texts(folder) == [text for text, _ in rows]
    assert texts(folder, "Validation") == [rows[i][0] for i in (0, 1, 3, 4)]
    assert [(row["file"], row["row"]) for row in table(folder)][8:10] == [
        (str(folder / "c_Training.tsv"), 4),
        (f"{folder / 'd_Training.xlsx'}, sheet 'Sheet'", 2),
    ]
    part = report["splits"]["Validation"]
    assert [(file["source"], file["read"], file["kept"]) for file in part["files"]] == [
        (str(folder / "x_Validation.csv"), 2, 2),
        (str(folder / "y_Validation.csv"), 3, 2),
    ]
    assert part["files"][1]["labels"] == {"0": 1, "1": 1}
    assert (part["read"], part["kept"], part["dropped"]) == (5, 4, {"no text": 1})


@pytest.mark.parametrize("split", ["Training", "Validation"])
def test_one_file_twice(folder: Path, split: str) -> None:
    for name in ("Training", "Validation"):
        two_columns(folder / f"{name}.csv", numbered(0, 6) if name == split else numbered(6, 9))
    copy = folder / f"{split} (1).csv"
    copy.write_bytes((folder / f"{split}.csv").read_bytes())
    assert refusal(folder, **OWN) == (
        f"{folder}: {split} (1).csv and {split}.csv are one file twice; keep one"
    )
    text = copy.read_text(encoding="utf-8")
    copy.write_text(text.replace("번째", "째번"), encoding="utf-8")  # of the same size, not equal
    files = ingest(folder, **OWN)["splits"][split]["files"]
    assert [file["source"] for file in files] == [str(copy), str(folder / f"{split}.csv")]


def test_one_file_for_both_splits(folder: Path) -> None:
    path = two_columns(folder / "Training.csv", numbered(0, 6))
    (folder / "Validation.csv").write_bytes(path.read_bytes())
    assert refusal(folder, **OWN) == (
        f"{folder}: Training.csv and Validation.csv are one file twice, and Validation would be "
        "learned by heart; keep one"
    )


def test_equal_texts_of_two_files_are_counted(folder: Path, capsys: pytest.CaptureFixture) -> None:
    first = two_columns(folder / "Training-1.csv", numbered(0, 9))
    second = two_columns(folder / "Training-2.csv", [*numbered(6, 12), ("8번째  글", "중립")])
    two_columns(folder / "Validation.csv", numbered(0, 3))
    report = ingest(folder, **OWN)
    assert capsys.readouterr().err == (
        f"note: {second}: 4 of its 7 texts also stand in the files before it (4 in {first}); if "
        "they are the same rows, remove them from one\n"
    )
    files = report["splits"]["Training"]["files"]
    assert [file["texts_also_in_earlier_files"] for file in files] == [0, 4]


def test_the_file_with_most_of_another_s_texts(folder: Path, capsys) -> None:
    """Of many: neither the first nor the last that has some of them."""
    shares = [numbered(0, 4), numbered(0, 9), numbered(3, 8), numbered(20, 30), numbered(2, 11)]
    for number, rows in enumerate(shares):
        two_columns(folder / f"Training-{number}.csv", [*rows, ("네", "1")])
    two_columns(folder / "Validation.csv", numbered(40, 49))
    report = ingest(folder, **OWN)["splits"]["Training"]["files"]
    assert [file["texts_also_in_earlier_files"] for file in report] == [0, 5, 6, 1, 8]
    said = [
        line.split("before it ")[1].split(")")[0] for line in capsys.readouterr().err.splitlines()
    ]
    shared = [(5, 0), (6, 1), (1, 0), (8, 1)]
    assert said == [f"({count} in {folder / f'Training-{at}.csv'}" for count, at in shared]


def test_files_are_not_compared_with_each_other_file(folder: Path, monkeypatch, capsys) -> None:
    compared = 0

    def counting(hashes: np.ndarray, among: np.ndarray) -> int:
        nonlocal compared
        compared += len(hashes)
        return number_in(hashes, among)

    number_in = tally.number_in
    monkeypatch.setattr(tally, "number_in", counting)
    for number in range(60):
        rows = numbered(9 * number, 9 * number + 9)
        two_columns(folder / f"Training-{number}.csv", [*rows, ("네", "1")])
    two_columns(folder / "Validation.csv", numbered(900, 909))
    ingest(folder, **OWN)
    assert compared <= 4 * 600
    *notes, last = capsys.readouterr().err.splitlines()
    assert len(notes) == 10
    assert last == "note: Training: 49 more files have texts that also stand in files before them"


@pytest.mark.parametrize(
    ("rows", "labels", "refused"),
    [
        (numbered(0, 49), "0", False),  # too few to be certain
        (numbered(0, 60), "0", True),
        ([*numbered(0, 54), *numbered(60, 66)], "0", True),
        ([*numbered(0, 53), *numbered(60, 67)], "0", False),
        (numbered(0, 60), "2", False),  # another annotator, who differs in a third of them
    ],
)
def test_a_file_that_repeats_another(
    folder: Path,
    rows: list[tuple[str, str]],
    labels: str,
    refused: bool,
    capsys: pytest.CaptureFixture,
) -> None:
    two_columns(folder / "Training-1.csv", numbered(0, 60))
    rows = [(text, labels if label == "0" else label) for text, label in rows]
    second = two_columns(folder / "Training-2.csv", rows[::-1])
    two_columns(folder / "Validation.csv", numbered(90, 99))
    if refused:
        said = refusal(folder, **OWN)
        assert said.endswith("; their labels are the same; keep one file")
    else:
        ingest(folder, **OWN)
        said = capsys.readouterr().err.removeprefix("note: ")
    assert said.startswith(f"{second}: ")


def test_labels_of_another_column_are_noted(folder: Path, capsys: pytest.CaptureFixture) -> None:
    two_columns(folder / "Training-1.csv", numbered(0, 6))
    second = two_columns(folder / "Training-2.csv", [("가", "긍정"), ("나", "긍정")])
    two_columns(folder / "Validation.csv", numbered(6, 9))
    ingest(folder, **OWN)
    assert capsys.readouterr().err == (
        f"note: {second}: none of its labels stands in the files before it; is label the same in "
        "all of them?\n"
    )


def test_a_class_of_one_row_names_its_file(folder: Path, capsys: pytest.CaptureFixture) -> None:
    two_columns(folder / "Training-1.csv", numbered(0, 6))
    second = two_columns(folder / "Training-2.csv", [("가", "0"), ("나", "중럽")])
    two_columns(folder / "Validation.csv", numbered(6, 9))
    ingest(folder, **OWN)
    assert capsys.readouterr().err == (
        f"note: Training: 1 of 4 classes have one row only ({second}, row 3); is the label "
        "misspelled?\n"
    )


def test_classes_that_are_alike(folder: Path, capsys: pytest.CaptureFixture) -> None:
    labels = ["Good", "1", "so so", "C", "good", "1.0", "soso", "C++", "10", "ＧＯＯＤ"]
    rows = [(f"글 {number}", label) for number, label in enumerate(labels * 2)]
    path = two_columns(folder / "mine.csv", rows)
    assert len(ingest(folder, **DRAWN)["splits"]["Training"]["labels"]) == 10
    said = (
        "7 of 10 classes differ from one another in capitals, blanks, form (① and 1) or a .0 alone"
    )
    assert capsys.readouterr().err == (
        f"note: {path}: {said} (first in rows 2, 6, 11, 3, 7, 4, 8); are they the same?\n"
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("가,나,다", ", row 3: it has 3 fields"),
        ("document,label", ", row 3: a second header"),
        ("label,document", ", row 3: a second header"),
        (",", ": 1 of 2 rows unusable"),
        ("가,\u3164", ": 1 of 2 rows unusable (1 with no label; first row 3: no label)"),
        ("가,", ": 1 of 2 rows unusable (1 with no label; first row 3: no label)"),
    ],
)
def test_an_error_names_its_file(folder: Path, line: str, complaint: str) -> None:
    two_columns(folder / "Training-1.csv", numbered(0, 6))
    second = write(folder / "Training-2.csv", "id,document,label"[3:], "가,0", line)
    if line == ",":
        second = write(folder / "Training-2.csv", "document,label,id", "가,0,1", ",,2")
    two_columns(folder / "Validation.csv", numbered(6, 9))
    assert refusal(folder, **OWN).startswith(f"{second}{complaint}")


def test_a_label_that_training_lacks_names_its_file(folder: Path) -> None:
    two_columns(folder / "Training.csv", numbered(0, 6))
    two_columns(folder / "Validation-1.csv", numbered(6, 9))
    second = two_columns(folder / "Validation-2.csv", [("가", "0"), ("나", "2")])
    ingest(folder, **OWN)
    path = folder.parent / "dialogues.parquet"
    with pytest.raises(InputError) as caught:
        labels.build(path, path.with_name("labels.json"), target="major")
    assert str(caught.value).startswith(f"{second}, row 3: its label is none of the 3 of Training")


# Columns and labels


def test_columns_of_any_name(folder: Path) -> None:
    for split in ("Training", "Validation"):
        write(
            folder / f"{split}.csv",
            "제  목,\ufeff본문,종류,비고",
            f"{split}에,첫 글,감정_대분류,x",
            ",둘째 글,기타(당황한),y",
            "셋째,,value,z",
        )
    names = {"text_columns": ["제 목", "본문", "비고"], "label_column": "종류"}
    ingest(folder, **names)
    assert [(row["text"], row["label"]) for row in table(folder)] == [
        ("Training에 첫 글", "감정_대분류"),
        ("둘째 글", "기타(당황한)"),  # only AI Hub's labels have an addition that is none
        ("셋째", "value"),
    ]
    ingest(folder, **names, turns=3)
    assert texts(folder)[0] == "Training에 첫 글 x"
    ingest(folder, **names, turns=1, max_dropped=0.5)
    assert texts(folder) == ["Training에", "셋째"]


def test_labels_that_are_words_for_nothing(folder: Path) -> None:
    names = ["none", "NA", "null", "-", "nan"]
    for split in ("Training", "Validation"):
        two_columns(folder / f"{split}.csv", [(f"{split}의 {name}", name) for name in names])
    report = ingest(folder, **OWN)
    assert report["splits"]["Training"]["dropped"] == {}
    assert [row["label"] for row in table(folder)] == names


def test_a_spreadsheet_s_error_is_no_label(folder: Path) -> None:
    for split in ("Training", "Validation"):
        two_columns(folder / f"{split}.csv", [(split, "#N/A"), ("둘", "1")])
    part = ingest(folder, **OWN, max_dropped=0.5)["splits"]["Training"]
    assert (part["labels"], part["dropped"]) == ({"1": 1}, {"label '#N/A'": 1})


def test_a_cell_that_is_its_column_s_name(folder: Path) -> None:
    """A word such as 제목 may be a text; only a row of nothing but headers is a second one."""
    for split in ("Training", "Validation"):
        write(folder / f"{split}.csv", "제목,내용,label", "제목,정말 좋아요,1", f"글,{split},label")
    names = {"text_columns": ["제목", "내용"], "label_column": "label"}
    ingest(folder, **names)
    assert texts(folder) == ["제목 정말 좋아요", "글 Training"]
    path = write(folder / "Training.csv", "제목,내용,label", "가,나,1", "제목,내용,label")
    for output in folder.parent.iterdir():
        if output.is_file():
            output.unlink()
    assert refusal(folder, **names).startswith(f"{path}, row 3: a second header")


def test_a_text_column_that_turns_leaves_out(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for split in ("Training", "Validation"):
        write(folder / f"{split}.csv", "a,b,c,label", f"{split},나,다,0", "라,마,바,0")
    ingest(folder, text_columns=["a", "b", "c"], label_column="label")
    assert capsys.readouterr().err == "note: turns is 2: of text_columns, c is not read\n"


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        (
            "id,document,label",
            {},
            "no column 사람문장1; found id, document, label; set text_columns in params.yaml",
        ),
        (
            "id,document,label",
            {"text_columns": "document"},
            "no column 감정_대분류; found id, document, label; set label_column in params.yaml",
        ),
        (
            "일기,오늘 합격했어,감정",
            OWN,
            "no column document; found 일기, 감정, other names in columns B; set text_columns in "
            "params.yaml",
        ),
        (
            "document,label",
            {**OWN, "text_columns": ["document", "title"]},
            "no column title; found document, label; write turns: 1 into params.yaml to do without",
        ),
        (
            "document,label",
            {**OWN, "target": "fine"},
            "no column 감정_소분류; found document, label; set target: major in params.yaml to do "
            "without",
        ),
        (
            "title,body: x,label",
            {**OWN, "text_columns": "title, body: x,"},
            "no column title, body: x,; found title, label, other names in columns B; write "
            'text_columns: ["title", "body: x"] into params.yaml',
        ),
        (
            "title,label",
            {**OWN, "text_columns": "title,"},
            "no column title,; found title, label; set text_columns in params.yaml",
        ),
        ("document,label,label", OWN, "2 columns named label; keep one"),
    ],
)
def test_a_column_that_is_not_there(folder: Path, header: str, options: dict, message: str) -> None:
    path = write(folder / "Training.csv", header, ",".join(header.split(",")).swapcase())
    two_columns(folder / "Validation.csv", numbered(0, 3))
    assert refusal(folder, **options) == f"{path}: {message}"


@pytest.mark.parametrize("name", ["reviews.jsonl", "dataset_info.json"])
def test_json_of_other_columns(folder: Path, name: str) -> None:
    two_columns(folder / "a.csv", numbered(0, 30))
    path = write(folder / name, '{"document": "가", "label": "1"}')
    assert refusal(folder, **DRAWN) == (
        f"{path}: no column document, label, for JSON is read as AI Hub's; save other data as "
        ".csv, or move the file away"
    )


@pytest.mark.parametrize("label", [1, "감정_대분류"])
def test_numbers_as_headers_of_a_workbook(folder: Path, label: int | str) -> None:
    """As pandas writes them for a table without names."""
    book = openpyxl.Workbook()
    for row in [(7, label), *((text, "기쁨") for text, _ in numbered(0, 9))]:
        book.active.append(row)
    book.save(folder / "a.xlsx")
    named = {**DRAWN, "label_column": str(label)}
    assert ": no column 0; found " in refusal(folder, **{**named, "text_columns": "0"})
    ingest(folder, **{**named, "text_columns": "7"})
    assert len(texts(folder) + texts(folder, "Validation")) == 9


@pytest.mark.parametrize("texts", ["label", ["document", "label"], ["a", "a "]])
def test_a_column_that_is_named_twice(folder: Path, texts: object) -> None:
    with pytest.raises(InputError, match="^text_columns and label_column in params.yaml name "):
        ingest(folder, text_columns=texts, label_column="label")


def test_whole_numbers_are_labels_in_a_workbook(folder: Path) -> None:
    for split in ("Training", "Validation"):
        book = openpyxl.Workbook()
        for row in [("document", "label"), (f"{split}의 글", 0), ("나", 1), ("다", "중립")]:
            book.active.append(row)
        book.save(folder / f"{split}.xlsx")
    ingest(folder, **OWN)
    assert [row["label"] for row in table(folder)] == ["0", "1", "중립"]


@pytest.mark.parametrize(
    ("row", "column"),
    [((5, 0), "document"), (("가", 0.5), "label"), (("가", True), "label")],
)
def test_other_numbers_are_errors(folder: Path, row: tuple, column: str) -> None:
    book = openpyxl.Workbook()
    for cells in [("document", "label"), ("나", 1), row]:
        book.active.append(cells)
    book.save(folder / "Training.xlsx")
    two_columns(folder / "Validation.csv", numbered(0, 3))
    assert refusal(folder, **OWN) == (
        f"{folder / 'Training.xlsx'}, sheet 'Sheet', row 3: {column} holds a number, date or "
        "truth value; write it as text"
    )


@pytest.mark.parametrize("other", ["Training", "Validation"])
def test_pairs_that_would_be_one_class(folder: Path, other: str) -> None:
    pairs = {"Training": ["a/b,d", "e,f"], "Validation": ["a/b,d", "e,f"]}
    pairs[other].append("a,b/d")
    for split, its in pairs.items():
        rows = [f"{split}의 글 {n},{pair}" for n, pair in enumerate(its)]
        write(folder / f"{split}.csv", "document,label,감정_소분류", *rows)
    assert refusal(folder, **OWN, target="fine") == (
        f"{folder / other}.csv, row 4: its label and 감정_소분류, joined by /, are the class of "
        "another pair; write them without /"
    )
    ingest(folder, **OWN)


def test_too_many_labels(folder: Path) -> None:
    path = two_columns(folder / "mine.csv", [(f"글 {n}", f"label {n}") for n in range(101)])
    assert refusal(folder, **DRAWN) == (
        f"{path}, row 102: the 101th label; 100 can be learned; does label hold something else?"
    )


# Tabs and quotes

QUOTED = ['"이건" 영화라고', '"X, 에 SF', "끝은 '증오\"", '말은 "가" 나', '""', "'둘"]


def test_quotes_are_text_where_they_enclose_nothing(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    lines = [f"{text}\t{number % 2}" for number, text in enumerate(QUOTED * 2)]
    write(folder / "Training.tsv", "document\tlabel", *lines)
    # Here each quote would be closed by the next one, and two rows would be one.
    write(folder / "Validation.tsv", "document\tlabel", '"하나\t0', "둘\t1", '셋"\t0', "넷\t1")
    ingest(folder, **OWN)
    assert texts(folder) == QUOTED * 2
    assert texts(folder, "Validation") == ['"하나', "둘", '셋"', "넷"]
    assert capsys.readouterr().err.startswith(
        f"note: {folder / 'Training.tsv'}: quotes are read as parts of the texts, for they do not "
        "enclose fields\n"
    )


def test_a_few_texts_in_quotes_among_many_without(folder: Path) -> None:
    some = ['"최고" 라는 말이 "아깝지 않다"', '"명작"', '"정말 좋은 영화"', '""', '"이건" 영화라고']
    for split in ("Training", "Validation"):
        lines = [*some, *(f"{split}의 {n}번째 글" for n in range(95))]
        write(folder / f"{split}.tsv", "document\tlabel", *(f"{line}\t1" for line in lines))
    ingest(folder, **OWN)
    assert texts(folder, "Validation") == lines


@pytest.mark.parametrize(
    "lines",
    [
        [f'"말 {n}, 예"\t"긍정"' for n in range(40)],  # everything is quoted
        [f'"말 {n}"\t긍정' for n in range(40)],  # the texts are
        [f"말 {n}\t긍정" for n in range(200)] + ['"그는 ""말"" 했다"\t긍정'] * 2,  # in need only
        [f"말 {n}\t긍정" for n in range(200)] + ['"말, 예"\t긍정'] * 2,
    ],
)
def test_a_broken_row_of_a_quoted_file(folder: Path, lines: list[str]) -> None:
    for split in ("Training", "Validation"):
        write(folder / f"{split}.tsv", "document\tlabel", f"{split}\t긍정", *lines)
    ingest(folder, **OWN)
    assert '"' not in "".join(texts(folder)).replace('그는 "말" 했다', "")
    assert {row["label"] for row in table(folder)} == {"긍정"}
    for output in folder.parent.iterdir():
        if output.is_file():
            output.unlink()
    path = folder / "Validation.tsv"
    write(path, "document\tlabel", *lines, '"잘못" 쓴 줄\t긍정', *lines)
    assert refusal(folder, **OWN).startswith(f"{path}, row {len(lines) + 2}: broken csv")


def test_quotes_around_a_field_with_a_tab_or_a_line_break(folder: Path) -> None:
    for split in ("Training", "Validation"):
        write(folder / f"{split}.tsv", "document\tlabel", f'"{split}\n""둘\t"""\t0', '"셋"\t1')
    ingest(folder, **OWN)
    assert texts(folder) == ['Training\n"둘\t"', "셋"]


# Without a Validation file


@pytest.mark.parametrize(
    "names", [["mine.csv"], ["b.csv", "a.tsv"], ["Training.csv", "Training.tsv"]]
)
def test_validation_is_drawn(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        mark = "\t" if name.endswith("tsv") else ","
        rows = numbered(60 * number, 60 * number + 60)
        write(folder / name, f"document{mark}label", *(mark.join(row) for row in rows))
    report = ingest(folder, **DRAWN)
    count = 60 * len(names)
    training, validation = table(folder), table(folder, "Validation")
    assert len(training) + len(validation) == count
    assert report["drawn"] == {
        "rows": count // 5,
        "of": count,
        "validation_share": 0.2,
        "seed": 1,
    }
    for split, rows in (("Training", training), ("Validation", validation)):
        part = report["splits"][split]
        assert part["read"] == part["kept"] == len(rows)
        assert set(part["labels"].values()) == {len(rows) // 3}  # stratified
        # Each row names its own file, and the rows of both are in the order of the files.
        places = [(sorted(names).index(Path(row["file"]).name), row["row"]) for row in rows]
        assert places == sorted(places)
        first = [60 * names.index(Path(row["file"]).name) for row in rows]
        assert [row["text"] for row in rows] == [
            f"{start + row['row'] - 2}번째 글" for start, row in zip(first, rows, strict=True)
        ]
    assert report["validation_texts_also_in_training"] == 0


def test_what_is_drawn_depends_on_the_seed_alone(folder: Path) -> None:
    two_columns(folder / "mine.csv", numbered(0, 60))
    ingest(folder, **DRAWN)
    first = texts(folder, "Validation")
    ingest(folder, **DRAWN)
    assert texts(folder, "Validation") == first
    ingest(folder, **{**DRAWN, "seed": 2})
    assert set(texts(folder, "Validation")) != set(first)
    two_columns(folder / "mine.csv", numbered(0, 60)[::-1])
    ingest(folder, **DRAWN)
    assert set(texts(folder, "Validation")) == set(first)


def test_what_is_drawn_of_texts_with_several_classes(folder: Path) -> None:
    rows = [*numbered(0, 60), *((text, "0") for text, _ in numbered(0, 40))]
    two_columns(folder / "mine.csv", rows)
    ingest(folder, **DRAWN)
    first = sorted(texts(folder, "Validation"))
    two_columns(folder / "mine.csv", rows[::-1])
    ingest(folder, **DRAWN)
    assert sorted(texts(folder, "Validation")) == first


def test_equal_texts_are_never_on_both_sides(folder: Path) -> None:
    spellings = ["하나 둘", "하나  둘", "하나\u200b 둘"]
    rows = [(spelling, str(n % 2)) for n, spelling in enumerate(spellings * 4)]
    two_columns(folder / "mine.csv", rows + [("셋", "0"), ("넷", "1"), ("다섯", "1")])
    for seed in range(5):
        report = ingest(folder, **{**DRAWN, "seed": seed, "validation_share": 0.5})
        assert report["validation_texts_also_in_training"] == 0
        for split in ("Training", "Validation"):
            assert {row["label"] for row in table(folder, split)} == {"0", "1"}


def test_more_rows_than_are_held_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_columns(folder / "mine.csv", numbered(0, 90))
    ingest(folder, **DRAWN)
    whole = table(folder), table(folder, "Validation")
    monkeypatch.setattr(ingest_module, "ROW_GROUP", 7)
    monkeypatch.setattr(ingest_module, "ROWS", 11)
    monkeypatch.setattr(ingest_module, "GROUP_TEXT", 40)
    ingest(folder, **DRAWN)
    assert (table(folder), table(folder, "Validation")) == whole


CASES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), min_size=1, max_size=60)


@settings(deadline=None, max_examples=50)
@given(CASES, st.sampled_from([0.01, 0.1, 0.5, 0.9, 0.99]), st.integers(0, 2**32 - 1))
def test_draw(rows: list[tuple[int, int]], share: float, seed: int) -> None:
    """Texts with several classes, too."""
    hashes = np.array([text * 2**60 for text, _ in rows], dtype=np.uint64)
    classes = np.array([number for _, number in rows], dtype=np.uint16)
    drawn = draw(hashes, classes, share, seed)
    assert drawn.shape == classes.shape
    assert not set(hashes[drawn]) & set(hashes[~drawn])
    assert set(classes[~drawn]) == set(classes)
    assert draw(hashes[::-1], classes[::-1], share, seed)[::-1].tolist() == drawn.tolist()


@settings(deadline=None, max_examples=50)
@given(CASES, st.sampled_from([0.01, 0.1, 0.5, 0.9, 0.99]), st.integers(0, 2**32 - 1))
def test_draw_is_stratified(rows: list[tuple[int, int]], share: float, seed: int) -> None:
    """Each text under one class: then every class of two texts has one on each side."""
    hashes = np.array([text * 2**60 + number for text, number in rows], dtype=np.uint64)
    classes = np.array([number for _, number in rows], dtype=np.uint16)
    drawn = draw(hashes, classes, share, seed)
    for number in set(classes):
        mine = classes == number
        assert drawn[mine].any() == (len(set(hashes[mine])) > 1)
        largest = max(np.unique(hashes[mine], return_counts=True)[1])
        assert abs(drawn[mine].sum() - share * mine.sum()) <= largest + 0.5


def test_draw_of_many() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 50_000, dtype=np.uint64)
    classes = rng.choice(4, 50_000, p=[0.7, 0.2, 0.09, 0.01]).astype(np.uint16)
    drawn = draw(hashes, classes, 0.1, 42)
    assert [round(0.1 * (classes == n).sum()) for n in range(4)] == [
        (classes[drawn] == n).sum() for n in range(4)
    ]
    more = draw(np.append(hashes, np.uint64(5)), np.append(classes, np.uint16(0)), 0.1, 42)[:-1]
    assert (more != drawn).sum() <= 2  # a new row leaves the others where they are
    assert (draw(hashes, classes, 0.1, 43) & drawn).sum() < 0.15 * drawn.sum()


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (["mine.csv"], {"validation_share": 0.0}, "{}: no Training file ("),
        (["Training.csv"], {"validation_share": 0.0}, "{}: no Validation file ("),
        (["Validation.csv"], {}, "{}: no Training file ("),
        (["Validation.csv", "mine.csv"], {}, "{}: no Training file ("),
        ([], {}, "{}: no Training file ("),
        (["ratings_train.csv", "ratings_test.csv"], {}, "{}/ratings_test.csv: its name says that"),
        (["train/a.csv", "test/a.csv"], {}, "{}/test/a.csv: its name says that it is set aside"),
        (["Training.csv", "valid.csv"], {}, "{}/valid.csv: its name says that it is set aside"),
        (["a.csv", "Training_Validation.csv"], {}, "{}/Training_Validation.csv: names both"),
    ],
)
def test_folders_that_are_refused(
    folder: Path, files: list[str], options: dict, message: str
) -> None:
    for number, name in enumerate(files):
        two_columns(folder / name, numbered(10 * number, 10 * number + 9))
    assert refusal(folder, **{**DRAWN, **options}).startswith(message.format(folder))


@pytest.mark.parametrize(
    "name",
    ["testset", "tests", "validset", "valset", "dev", "holdout", "hold-out", "평가", "evaluation"],
)
def test_a_file_that_is_set_aside(folder: Path, name: str) -> None:
    two_columns(folder / "data.csv", numbered(0, 9))
    path = two_columns(folder / f"{name}.csv", numbered(9, 18))
    assert refusal(folder, **DRAWN) == (
        f"{path}: its name says that it is set aside; write 'Validation' into it and 'Training' "
        "into the names of the others, or remove it"
    )


def test_files_that_name_no_split_are_listed(folder: Path, capsys: pytest.CaptureFixture) -> None:
    names = ["contest.csv", "device.csv", "latest.csv", "values.csv"]
    for number, name in enumerate(names):
        two_columns(folder / name, numbered(9 * number, 9 * number + 9))
    assert ingest(folder, **DRAWN)["drawn"]["of"] == 36
    assert capsys.readouterr().err == (
        f"note: {folder}: read as Training, for no name says a split: {', '.join(names)}\n"
    )


@pytest.mark.parametrize("options", [OWN, DRAWN])
def test_files_of_neither_name_beside_both_splits(
    folder: Path, options: dict, capsys: pytest.CaptureFixture
) -> None:
    for number, name in enumerate(["Training_1", "Validation", *(f"x{n}" for n in range(10, 22))]):
        two_columns(folder / f"{name}.csv", numbered(9 * number, 9 * number + 9))
    assert ingest(folder, **options)["splits"]["Training"]["read"] == 9
    names = ", ".join(f"x{n}.csv" for n in range(10, 20))
    assert capsys.readouterr().err == (
        f"note: {folder}: not read, for their names say neither split: {names} and 2 more\n"
    )


@pytest.mark.parametrize("names", [["Training", "Validation"], ["Training"]])
def test_a_table_of_other_columns_is_no_part_of_the_corpus(
    folder: Path, names: list[str], capsys: pytest.CaptureFixture
) -> None:
    """Such as situations.csv in data/sample, which says who wrote each row."""
    for number, name in enumerate(names):
        two_columns(folder / f"{name}.csv", numbered(30 * number, 30 * number + 30))
    (folder / "codes.csv").write_text("code,label\n1,가\n", encoding="utf-8")
    assert ingest(folder, **DRAWN)["splits"]["Training"]["files"][0]["read"] == 30
    assert capsys.readouterr().err == ""


def test_a_name_that_may_be_validation_misspelled(folder: Path) -> None:
    two_columns(folder / "Training.csv", numbered(0, 30))
    two_columns(folder / "Validaton.csv", numbered(30, 60))
    message = refusal(folder, **DRAWN)
    # "valid" is found in it; a name without is refused as well.
    assert message.startswith(f"{folder / 'Validaton.csv'}: its name says that it is set aside")
    (folder / "Validaton.csv").rename(folder / "Vaildation.csv")
    assert refusal(folder, **DRAWN) == (
        f"{folder}: no Validation file, and no split is named by Vaildation.csv; write 'Training' "
        "or 'Validation' into that name, or move the file away"
    )


SUFFIXES = ".xlsx, .csv, .tsv, .json, .jsonl"


@pytest.mark.parametrize("first", ["Training.csv", "reviews.csv"])
@pytest.mark.parametrize(
    "name",
    [
        "Validation.xls",
        "Validation.csv.gz",
        "Validation/a.xlsm",
        "Validation.zip",
        "Validation.dat",
        "Validation/ratings.txt",
        "Validation/reviews.zip",
    ],
)
def test_a_validation_of_a_format_that_is_not_read(folder: Path, first: str, name: str) -> None:
    two_columns(folder / first, numbered(0, 30))
    write(folder / name, "no table")
    assert refusal(folder, **DRAWN) == (
        f"{folder / name}: names Validation, and only {SUFFIXES} are read; save it as one of "
        "them, rename it or move it away"
    )


@pytest.mark.parametrize(
    "name",
    ["cross_validation.ipynb", "how_validation_was_done.md", "Validation/README.md"]
    + ["Validation/page-1.png", "Training.zip", "Training.csv.dvc", "more.zip"]
    + ["Training.tar.gz", "Training.gz", "Training.csv.tar.xz", "validation.pdf.dvc"]
    + ["validation" + suffix for suffix in (".pptx", ".webp", ".doc", ".ppt", ".rst", ".tex")]
    + ["validation.sh", "validation.yml", "validation.toml", "weights.bin.dvc"],
)
def test_files_beside_that_are_no_tables(
    folder: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    two_columns(folder / "Training.csv", numbered(0, 30))
    write(folder / name, "no table")
    assert ingest(folder, **DRAWN)["splits"]["Validation"]["kept"]
    assert "not read" not in capsys.readouterr().err


@pytest.mark.parametrize("first", ["Training_2.csv", "notes.txt"])
@pytest.mark.parametrize(
    "name",
    ["Training.csv.dvc", "Validation.xlsx.dvc", "old.csv.dvc"]
    + ["Validation.dvc", "1.Training.dvc", "01.원천데이터.dvc", "Validation.zip.dvc"],
)
def test_data_that_dvc_has_not_brought(folder: Path, name: str, first: str) -> None:
    two_columns(folder / first, numbered(0, 30))
    (folder / "Validation").mkdir()  # as git leaves it
    write(folder / name, "outs:\n- md5: 0" + ".dir" * (Path(name).stem.count(".") < 2))
    assert refusal(folder, **DRAWN) == (
        f"{folder / name}: its data is not here; type 'dvc pull', or remove the .dvc file"
    )


def test_pointers_beside_all_that_is_needed(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for number, name in enumerate(["Training", "Validation"]):
        two_columns(folder / f"{name}.csv", numbered(30 * number, 30 * number + 30))
    write(folder / "LICENSE.dvc", "outs:\n- md5: 0")
    write(folder / "old.csv.dvc", "outs:\n- md5: 0")
    write(folder / "originals.dvc", "outs:\n- md5: 0.dir")
    ingest(folder, **OWN)
    assert capsys.readouterr().err == (
        f"note: {folder}: not read, for only {SUFFIXES} are: old.csv.dvc, originals.dvc\n"
    )


def test_folders_that_dvc_has_brought(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for number, name in enumerate(["Training", "Validation", "1.그림"]):
        two_columns(folder / name / "a.csv", numbered(30 * number, 30 * number + 30))
        write(folder / f"{name}.dvc", "outs:")
    (folder / "1.그림/a.csv").rename(folder / "1.그림/a.png")
    ingest(folder, **OWN)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("names", [["reviews.csv"], ["Training.csv", "Validation.csv"]])
def test_tables_of_a_format_that_is_not_read(
    folder: Path, names: list[str], capsys: pytest.CaptureFixture
) -> None:
    for number, name in enumerate(names):
        two_columns(folder / name, numbered(30 * number, 30 * number + 30))
        write(folder / f"{name}.dvc", "outs:")
    unread = ["Training_2.txt", f"{names[0]}_2.parquet", "x/o.XLS"]
    for name in ("README.md", "terms.txt", *unread):
        write(folder / name, "no table")
    ingest(folder, **DRAWN)
    assert capsys.readouterr().err == (
        f"note: {folder}: not read, for only {SUFFIXES} are: {', '.join(sorted(unread))}\n"
    )


def test_a_file_that_icloud_keeps(folder: Path) -> None:
    two_columns(folder / "Training.csv", numbered(0, 30))
    (folder / ".terms.pdf.icloud").write_bytes(b"bplist00")
    ingest(folder, **DRAWN)
    for output in folder.parent.glob("*.*"):
        output.unlink()
    (folder / ".Training_2.csv.icloud").write_bytes(b"bplist00")
    assert refusal(folder, **DRAWN) == (
        f"{folder / '.Training_2.csv.icloud'}: this file is in iCloud only; open the folder in the "
        "Finder and choose 'Download Now'"
    )


def test_texts_that_were_decoded_wrongly(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """By the program that wrote the file; nobody can tell what they were."""
    for split in ("Training", "Validation"):
        rows = [("좋\ufffd아요", "1"), ("\ufffd\ufffd", "0"), (split, "1"), ("글", "0")]
        two_columns(folder / f"{split}.csv", rows)
    ingest(folder, **OWN)
    assert capsys.readouterr().err.splitlines() == [
        f"note: {folder / split}.csv: 2 of 4 texts (first row 2) hold �, in the place of a "
        "character that was lost; save the file again as utf-8 from where it was whole"
        for split in ("Training", "Validation")
    ]


@pytest.mark.parametrize("name", ["Validation.csv", "Validation", "more.csv"])
def test_a_link_to_a_file_that_is_gone(folder: Path, name: str) -> None:
    two_columns(folder / "Training.csv", numbered(0, 30))
    (folder / name).symlink_to(folder.parent / "usb" / name)
    (folder / ".#Training.csv").symlink_to("user@host.1:2")  # Emacs' lock
    assert refusal(folder, **DRAWN) == (
        f"{folder / name}: a link to a file that is not there; bring it back or remove the link"
    )


def test_classes_of_one_text_each(folder: Path) -> None:
    two_columns(folder / "mine.csv", [("가", "0"), ("나", "1"), ("가 ", "0")])
    assert refusal(folder, **DRAWN).startswith(
        f"{folder}: no Validation file, and no row can become Validation, because no class has two"
    )


# The stages


def test_a_two_column_csv_through_the_stages(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    two_columns(folder / "mine.csv", [*numbered(0, 60), ("", "0")])
    root = folder.parents[1]
    set_params(root, corpus="mine", **OWN)
    monkeypatch.chdir(root)
    exit_with_line(stages.ingest.main)
    exit_with_line(stages.labels.main)
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "data/mine/mine.csv: 61 rows read, 60 kept; dropped: 1 with no text",
        "no Validation file: 6 of 60 rows became Validation (validation_share 0.1, seed 42); the "
        "same people wrote Training, so the accuracy flatters, compared with texts of other "
        "writers",
        "3 classes: 0, 1, 중립",
    ]
    assert err == ""
    report = json.loads((root / "reports/ingest.json").read_text(encoding="utf-8"))
    assert report["splits"]["Training"]["dropped"] == {"no text": 1}
    assert report["splits"]["Validation"]["kept"] == 6


def test_several_files_are_said_with_their_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, start in (("Training-1", 0), ("Training-2", 9), ("Validation", 12)):
        two_columns(folder / f"{name}.csv", numbered(start, start + 6 + 3 * (start == 0)))
    set_params(folder.parents[1], corpus="mine", **OWN)
    monkeypatch.chdir(folder.parents[1])
    exit_with_line(stages.ingest.main)
    assert capsys.readouterr().out.splitlines() == [
        "data/mine/Training-1.csv: 9 rows read, 9 kept; dropped: none",
        "data/mine/Training-2.csv: 6 rows read, 6 kept; dropped: none",
        "Training: 15 rows read, 15 kept; dropped: none",
        "Validation: 6 rows read, 6 kept; dropped: none",
        "note: 3 Validation texts also stand in Training; they flatter the accuracy",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_line_break_in_a_file_s_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for number, name in enumerate(["Training\n1", "Training\r2", "Validation"]):
        two_columns(folder / f"{name}.csv", numbered(6 * number, 6 * number + 6))
    write(folder / "\n.xls", "no table")
    set_params(folder.parents[1], corpus="mine", **OWN)
    monkeypatch.chdir(folder.parents[1])
    exit_with_line(stages.ingest.main)
    out, err = capsys.readouterr()
    assert out.split("\n")[:2] == [
        rf"data/mine/Training{end}.csv: 6 rows read, 6 kept; dropped: none"
        for end in (r"\n1", r"\r2")
    ]
    assert err == rf"note: data/mine: not read, for only {SUFFIXES} are: \n.xls" + "\n"
