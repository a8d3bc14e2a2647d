"""Text → emotion, from a program and from the command line."""

import csv
import io
import json
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storyflower import Classifier, predict
from storyflower.__main__ import main
from storyflower.common.errors import InputError, exit_with_line
from storyflower.sheets import write
from storyflower.sheets.read import open_sheet
from tests.support import WORDS, write_workbook

SENTENCES = {"심장이 뛰어": "불안", "합격했어 웃음이 나": "기쁨", "따지고 싶어": "분노"}


@pytest.fixture(scope="module")
def loaded(classifier: Path) -> Classifier:
    return Classifier.load(classifier, device="cpu")


def test_three_texts_in_their_order(loaded: Classifier) -> None:
    found = loaded.predict(list(SENTENCES))
    assert [row.label for row in found] == list(SENTENCES.values())
    assert set(loaded.labels) == set(WORDS)
    for row in found:
        assert set(row.probabilities) == set(WORDS)
        shares = list(row.probabilities.values())
        assert sum(shares) == pytest.approx(1, abs=1e-6)
        assert shares == sorted(shares, reverse=True)
        assert row.label == next(iter(row.probabilities))


def test_the_other_texts_of_a_batch_change_nothing(loaded: Classifier) -> None:
    texts = [*SENTENCES, "잠이 안 와 " * 9, "합격했어"]
    together = loaded.predict(texts)
    for text, row in zip(texts, together, strict=True):
        (alone,) = loaded.predict([text])
        assert alone.label == row.label
        assert alone.probabilities == pytest.approx(row.probabilities, abs=1e-5)
    assert loaded.predict(texts) == together  # dropout is off


def test_no_texts_and_one_text_that_is_no_list(loaded: Classifier) -> None:
    assert loaded.predict([]) == []
    with pytest.raises(TypeError, match="a list of texts, not one text"):
        loaded.predict("합격했어")


def test_texts_that_are_hard_to_read(loaded: Classifier) -> None:
    """Longer than max_len, only emoji, empty, NFD, a line break."""
    start = "심장이 뛰어 " * 20
    texts = [start, start + "합격했어 " * 10_000, "😀🎉", "", "합격했어", "합격\n했어"]
    found = loaded.predict(texts)
    assert found[0] == found[1]  # what is beyond max_len is not read
    for row in found:
        assert sum(row.probabilities.values()) == pytest.approx(1, abs=1e-6)


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(
    classifier: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Callable[..., Done]:
    """python -m storyflower predict, with the classifier where it is looked for."""

    def call(*words: str, stdin: bytes = b"", model: Path | None = None) -> Done:
        monkeypatch.setattr(sys, "argv", ["storyflower", "predict", *words])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "argv", [*sys.argv, "--model", str(model or classifier)])
        try:
            exit_with_line(main)
            code = 0
        except SystemExit as stop:
            code = stop.code
        return Done(code, *capfd.readouterr())

    return call


def test_sentences_as_arguments(call, loaded: Classifier) -> None:
    done = call(*SENTENCES)
    assert (done.code, done.err) == (0, "")
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [(row, label) for row, label, _ in lines] == [
        (str(number), label) for number, label in enumerate(SENTENCES.values(), start=1)
    ]
    for (_, _, shares), row in zip(lines, loaded.predict(list(SENTENCES)), strict=True):
        assert shares == "  ".join(f"{k} {p:.1%}" for k, p in row.probabilities.items())
    shown = call("--show-text", *SENTENCES)
    assert shown.out.splitlines() == [
        "\t".join([*line, text]) for line, text in zip(lines, SENTENCES, strict=True)
    ]


def test_json_lines(call, loaded: Classifier) -> None:
    done = call("--json", "--show-text", *SENTENCES)
    assert (done.code, done.err) == (0, "")
    rows = [json.loads(line) for line in done.out.splitlines()]
    found = loaded.predict(list(SENTENCES))
    for number, (row, text, each) in enumerate(zip(rows, SENTENCES, found, strict=True), start=1):
        expected = {"row": number, "label": each.label, "probabilities": each.probabilities}
        assert row == expected | {"text": text}
    assert "심장이 뛰어" in done.out  # readable, not \\uc2ec
    without = call("--json", *SENTENCES)
    assert [json.loads(line) | {"text": ""} for line in without.out.splitlines()] == [
        row | {"text": ""} for row in rows
    ]
    assert "text" not in without.out


def test_lines_of_standard_input(call) -> None:
    """As Windows writes them: a byte order mark, \\r\\n, and blank lines, which count."""
    text = "\ufeff\r\n" + "\r\n  \r\n".join(SENTENCES) + "\r\n\r\n"
    done = call("--show-text", stdin=text.encode("utf-8"))
    assert (done.code, done.err) == (0, "")
    expected = call("--show-text", *SENTENCES).out.splitlines()
    for number, line, like in zip([2, 4, 6], done.out.splitlines(), expected, strict=True):
        assert line == f"{number}\t{like.partition(chr(9))[2]}"
    marked = call("--json", "--show-text", stdin="\ufeff합격했어".encode())
    assert json.loads(marked.out)["text"] == "합격했어"


@pytest.mark.parametrize("stdin", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_no_sentence(call, stdin: bytes) -> None:
    done = call(stdin=stdin)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "error: no sentence given; put one in quotes or send lines to standard input\n"
    )


def test_standard_input_that_is_not_utf8(call) -> None:
    done = call(stdin="합격했어".encode("cp949"))
    assert done == (1, "", "error: standard input is not utf-8\n")


def test_no_classifier(call, tmp_path: Path) -> None:
    done = call("합격했어", model=tmp_path / "none")
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert line.startswith("error: ") and str(tmp_path / "none") in line and "dvc repro" in line


def test_another_command_is_told_how_to_predict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["storyflower", "train"])
    with pytest.raises(SystemExit) as stop:
        exit_with_line(main)
    assert stop.value.code == 2
    assert "no such command, see --help" in capsys.readouterr().err


# Spreadsheets in and out

TEXTS = ["심장이 뛰어", None, "합격했어 웃음이 나", "=1+1", "  ", "따지고 싶어\n둘째 줄"]
HEADER = [None, "연령", "일기"]


def write_input(path: Path, texts: list = TEXTS) -> Path:
    rows = [[number, "청년" if text else None, text] for number, text in enumerate(texts, start=1)]
    if path.suffix == ".csv":
        with path.open("w", encoding="cp949", newline="") as file:
            csv.writer(file).writerows([HEADER, *rows])
        return path
    write_workbook(path, rows, HEADER)
    book = openpyxl.load_workbook(path)
    for row in book.active.iter_rows(min_row=2, min_col=3):
        if row[0].value is not None:
            row[0].data_type = "s"  # openpyxl takes "=1+1" for a formula
    book.save(path)
    return path


def read_output(path: Path) -> list[list]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = [[cell or None for cell in row] for row in csv.reader(file)]
        return [header] + [
            [int(n), text, label, *(share and float(share) for share in shares)]
            for n, text, label, *shares in rows
        ]
    book = openpyxl.load_workbook(path)
    return [[cell.value for cell in row] for row in book.active.iter_rows()]


@pytest.mark.parametrize("read", [".xlsx", ".csv"])
@pytest.mark.parametrize("written", [".xlsx", ".csv"])
def test_spreadsheets_in_and_out(
    call, loaded: Classifier, tmp_path: Path, read: str, written: str
) -> None:
    source, output = write_input(tmp_path / f"일기{read}"), tmp_path / f"결과{written}"
    texts = [text for text in TEXTS if text and text.strip()]
    found = dict(zip(texts, loaded.predict(texts), strict=True))
    done = call("--input", str(source), "--column", "일기", "--output", str(output))
    assert done == (0, f"{output}: 6 rows\n", "")
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    header, *rows = read_output(output)
    assert header == ["row", "일기", "label", *(f"p({name})" for name in loaded.labels)]
    assert [row[0] for row in rows] == [2, 3, 4, 5, 6, 7]  # as the input's sheet numbers them
    for (_, text, label, *shares), given_text in zip(rows, TEXTS, strict=True):
        if not (given_text or "").strip():
            assert (text, label) == (None, None) and not any(shares)
            continue
        if written == ".csv" and given_text == "=1+1":
            assert text == "'=1+1"
        else:
            assert text == given_text
        assert label == found[given_text].label
        expected = [found[given_text].probabilities[name] for name in loaded.labels]
        assert shares == pytest.approx(expected, abs=1e-5)


def test_more_rows_than_are_held_in_memory_keep_their_order(
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{text} {n}" for n in range(5) for text in SENTENCES]
    source = write_input(tmp_path / "a.csv", texts)
    words = ["--input", str(source), "--column", "일기", "--output"]
    call(*words, str(tmp_path / "whole.csv"))
    monkeypatch.setattr(predict, "BATCH", 4)
    call(*words, str(tmp_path / "rows.csv"))
    monkeypatch.setattr(predict, "BATCH_TEXT", 10)
    call(*words, str(tmp_path / "characters.csv"))
    whole = read_output(tmp_path / "whole.csv")
    assert [row[1] for row in whole[1:]] == texts
    for name in ("rows.csv", "characters.csv"):
        rows = read_output(tmp_path / name)
        assert [row[:3] for row in rows] == [row[:3] for row in whole]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--input", "in.xlsx"], "--input and --output belong together"),
        (["--output", "out.xlsx"], "--input and --output belong together"),
        (["--input", "in.xlsx", "--output", "out.csv", "합격"], "belong together, without"),
        (["--input", "in.xlsx", "--output", "out.csv"], "no column 사람문장1; found 연령, other"),
        (["--input", "in.xlsx", "--output", "out.ods", "--column", "일기"], "out.ods: --input"),
        (["--input", "in.xls", "--output", "out.csv", "--column", "일기"], "in.xls: --input"),
        (["--input", "none.xlsx", "--output", "out.csv"], "none.xlsx: cannot be read (No such"),
        (["--input", "in.xlsx", "--output", "nowhere/out.csv"], "nowhere: no such folder"),
        (["--input", "in.xlsx", "--output", "in.xlsx", "--column", "일기"], "is the input"),
        (["--input", "in.xlsx", "--output", "no/../in.xlsx", "--column", "일기"], "is the input"),
        (["--input", "number.csv", "--output", "out.csv", "--column", "연령"], "broken csv"),
    ],
)
def test_what_predict_refuses(
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no").mkdir()
    source = write_input(tmp_path / "in.xlsx")
    (tmp_path / "number.csv").write_text('연령\n"청년"들\n', encoding="utf-8")
    (tmp_path / "out.csv").write_text("old", encoding="utf-8")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    done = call(*words)
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert line.startswith("error: ") and complaint in line
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before
    assert source.exists()


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
STARTS = st.sampled_from(["", "=", "+", "-", "@", "\t", "\r", "＝", "_x0041_", "&lt;", "'", " "])


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(STARTS, ANY_TEXT).map("".join), min_size=1, max_size=6))
def test_no_cell_that_is_written_is_a_formula(tmp_path: Path, texts: list[str]) -> None:
    rows = [[text, 0.5] for text in texts]
    write.write_rows(tmp_path / "a.xlsx", ["=머리", "p"], rows)
    numbered = list(open_sheet(tmp_path / "a.xlsx", {"=머리"}).rows)
    assert [number for number, _ in numbered] == list(range(2, len(texts) + 2))
    # Every character comes back, but for two that XML cannot hold
    expected = [re.sub("[\ufffe\uffff]", "\ufffd", text) for text in texts]
    assert [cells[0] for _, cells in numbered] == expected
    book = openpyxl.load_workbook(tmp_path / "a.xlsx")
    for cell in book.active["A"]:
        assert cell.value is None or (cell.data_type == "s" and cell.quotePrefix)

    write.write_rows(tmp_path / "a.csv", ["=머리", "p"], rows)
    with (tmp_path / "a.csv").open(encoding="utf-8-sig", newline="") as file:
        read = [row[0] for row in csv.reader(file)]
    for text, cell in zip(["=머리", *texts], read, strict=True):
        assert cell == (f"'{text}" if text[:1] in tuple("=+-@\t\r＝") and text else text)


def test_what_an_xlsx_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.xlsx"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="cell B3 would have 32,768 characters"):
        write.write_rows(path, ["a", "b"], [["가", "나"], ["가", "나" * 32_768]])
    monkeypatch.setattr(write, "MAX_ROWS", 2)
    with pytest.raises(InputError, match="a sheet ends at row 2; write a .csv"):
        write.write_rows(path, ["a"], [["가"], ["나"]])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
