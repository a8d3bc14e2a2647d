"""A file in, a file out: every format, runs that were stopped, files that are broken."""

import base64
import csv
import datetime
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet import encryption

from storyflower import Classifier, score_file
from storyflower.__main__ import main
from storyflower.common import locks
from storyflower.common.errors import InputError, exit_with_line
from storyflower.encoder import prepare
from storyflower.interim.labels import LabelIndex
from storyflower.model.folder import build_classifier, save_classifier
from tests.support import ROOT, WORDS, environment_of

FORMATS = [".xlsx", ".csv", ".jsonl", ".parquet"]
TEXTS = ["심장이 뛰어", None, "합격했어 웃음이 나", "=1+1", "  ", "따지고 싶어\n둘째 줄"]
COLUMNS = ["번호", "일기", "비고"]
ROWS = [[f"{number:03}", text, f"글 {number}"] for number, text in enumerate(TEXTS, start=1)]


@pytest.fixture(scope="module")
def loaded(classifier: Path) -> Classifier:
    return Classifier.load(classifier, device="cpu")


@pytest.fixture
def score(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Callable[..., tuple[int, str, list[str]]]:
    """python -m storyflower predict --input … --output … → exit code, output, lines of stderr."""
    monkeypatch.chdir(tmp_path)

    def score(source: str, output: str, column: str = "일기", *more: str):
        words = ["--input", source, "--output", output, "--column", column, *more]
        words = ["predict", "--model", str(classifier), *words]
        monkeypatch.setattr(sys, "argv", ["storyflower", *words])
        try:
            exit_with_line(main)
            code = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return code, out, err.splitlines()

    return score


def write_input(path: Path, rows: list[list] = ROWS, columns: list = COLUMNS) -> Path:
    """Rows of text and None; an .xlsx or .parquet may hold other values."""
    if path.suffix == ".csv":
        with path.open("w", encoding="cp949", newline="") as file:
            csv.writer(file, delimiter=";").writerows([columns, *rows])
    elif path.suffix == ".jsonl":
        lines = (dict(zip(columns, row, strict=True)) for row in rows)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    elif path.suffix == ".parquet":
        columns = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(pa.table(columns), path)
    else:
        book = openpyxl.Workbook()
        for row in [columns, *rows]:
            book.active.append(row)
        for cells in book.active.iter_rows():
            for cell in cells:
                if isinstance(cell.value, str):
                    cell.data_type = "s"  # openpyxl takes "=1+1" for a formula
        book.save(path)
    return path


def read_output(path: Path) -> tuple[list[str], list[list]]:
    """The header and the rows, "" as None; the numbers of a .csv behind the label as floats."""
    if path.suffix == ".parquet":
        table = pq.ParquetFile(path).read()
        columns = [column.to_pylist() for column in table.columns]
        header, rows = table.column_names, [list(row) for row in zip(*columns, strict=True)]
    elif path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        header, rows = list(lines[0]), [list(line.values()) for line in lines]
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = csv.reader(file)
        label = header.index("label")
        rows = [row[: label + 1] + [p and float(p) for p in row[label + 1 :]] for row in rows]
    else:
        book = openpyxl.load_workbook(path)
        header, *rows = ([cell.value for cell in row] for row in book.active.iter_rows())
    return header, [[None if cell == "" else cell for cell in row] for row in rows]


@pytest.mark.parametrize("read", FORMATS)
@pytest.mark.parametrize("written", FORMATS)
def test_every_format_in_and_out(
    score, loaded: Classifier, tmp_path: Path, read: str, written: str
) -> None:
    source, output = write_input(tmp_path / f"내 일기{read}"), tmp_path / f"결과{written}"
    code, out, err = score(source.name, output.name)
    assert (code, out) == (0, f"{output.name}: 6 rows\n")
    assert err[0] == "note: 2 rows have no text; label and probabilities stay empty there"
    guarded = (
        "note: 결과.csv: an apostrophe before 1 cell that a spreadsheet would run as a formula"
    )
    assert err[1:] == [f"{guarded}, in 일기 (1)"] * (written == ".csv")
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert set(tmp_path.iterdir()) == {source, output}
    header, rows = read_output(output)
    assert header == [*COLUMNS, "label", *(f"p({name})" for name in loaded.labels)]
    texts = [text for text in TEXTS if text and text.strip()]
    found = dict(zip(texts, loaded.predict(texts), strict=True))
    for (number, text, note, label, *shares), given in zip(rows, ROWS, strict=True):
        guard = "'" if written == ".csv" and text == "'=1+1" else ""
        assert [number, note] == [given[0], given[2]]
        assert text == (given[1] and guard + given[1]) or not (text or given[1].strip())
        if given[1] in found:
            assert label == found[given[1]].label
            expected = [found[given[1]].probabilities[name] for name in loaded.labels]
            assert shares == pytest.approx(expected, abs=1e-5)
        else:
            assert [label, *shares] == [None] * (1 + len(loaded.labels))


@pytest.mark.parametrize("written", FORMATS)
def test_headers_of_a_workbook_that_are_no_text(score, tmp_path: Path, written: str) -> None:
    columns = [2025, "일기", datetime.date(2026, 1, 2), 0.5, True]
    write_input(tmp_path / "a.xlsx", [["가", "합격했어", "나", "다", "라"]] * 2, columns)
    assert score("a.xlsx", f"b{written}")[0] == 0
    header, _ = read_output(tmp_path / f"b{written}")
    assert header[:5] == ["2025", "일기", "2026-01-02", "0.5", "True"]


DAY = datetime.date(2026, 1, 2)
MINUTE = datetime.datetime(2026, 1, 2, 3, 4, 5)
VALUES = [
    ["기뻐", 1, 1.5, True, DAY, MINUTE, "글"],
    ["화가 나", 2, -2.5, False, None, MINUTE, None],
]
AS_TEXT = [
    ["기뻐", "1", "1.5", "TRUE", "2026-01-02", "2026-01-02 03:04:05", "글"],
    ["화가 나", "2", "-2.5", "FALSE", None, "2026-01-02 03:04:05", None],
]
AS_JSON = [
    [*VALUES[0][:4], *AS_TEXT[0][4:]],
    [*VALUES[1][:4], *AS_TEXT[1][4:]],
]
IN_EXCEL = [
    [*VALUES[0][:4], datetime.datetime(2026, 1, 2), *VALUES[0][5:]],
    VALUES[1],
]


@pytest.mark.parametrize("read", [".xlsx", ".parquet"])
@pytest.mark.parametrize(
    ("written", "expected"),
    [(".xlsx", IN_EXCEL), (".csv", AS_TEXT), (".jsonl", AS_JSON), (".parquet", VALUES)],
)
def test_numbers_dates_and_truth_values(
    score, tmp_path: Path, read: str, written: str, expected: list[list]
) -> None:
    columns = ["일기", "정수", "실수", "참", "날", "때", "글"]
    write_input(tmp_path / f"a{read}", VALUES, columns)
    assert score(f"a{read}", f"b{written}")[0] == 0
    header, rows = read_output(tmp_path / f"b{written}")
    assert header[: len(columns)] == columns
    assert [row[: len(columns)] for row in rows] == expected


def test_parquet_to_parquet_keeps_every_type(score, tmp_path: Path) -> None:
    table = pa.table(
        {
            "일기": pa.array(["기뻐", None]).dictionary_encode(),
            "ns": pa.array([1, None], pa.timestamp("ns", "Asia/Seoul")),
            "bytes": pa.array([b"\xff", b""]),
            "map": pa.array([[("가", 1)], None], pa.map_(pa.string(), pa.int8())),
            "list": pa.array([[1.5], []], pa.list_(pa.float32())),
            "decimal": pa.array(["1.50", "2.25"]).cast(pa.decimal128(9, 2)),
        },
        metadata={"whose": "mine"},
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert score("a.parquet", "b.parquet")[0] == 0
    written = pq.read_table(tmp_path / "b.parquet")
    assert written.select(table.column_names).equals(table)
    assert written.schema.metadata[b"whose"] == b"mine"
    code, _, (line,) = score("a.parquet", "b.csv")
    assert code == 1 and "column bytes has the type binary, which only Parquet can hold" in line


def test_keys_that_only_some_lines_have(score, tmp_path: Path) -> None:
    lines = [{"a": 1, "일기": "기뻐"}, {}, {"일기": None, "b": {"c": [1, "가"]}, "a": None}]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "a.jsonl").write_text(f"\ufeff{text}", encoding="utf-8")
    assert score("a.jsonl", "b.jsonl")[0] == 0
    written = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text("utf-8").splitlines()]
    for before, after in zip(lines, written, strict=True):
        assert {key: value for key, value in after.items() if key in ("a", "b", "일기")} == before
    assert score("a.jsonl", "b.csv")[0] == 0
    header, rows = read_output(tmp_path / "b.csv")
    assert header[:4] == ["a", "일기", "b", "label"]
    own = [["1", "기뻐", None], [None] * 3, [None, None, '{"c": [1, "가"]}']]
    assert [row[:3] for row in rows] == own


def test_columns_without_a_name(score, tmp_path: Path) -> None:
    """AI Hub's workbooks have one; cells can also stand right of the header."""
    write_input(tmp_path / "a.xlsx", [[1, "기뻐"], [2, "화가 나", "밖"]], [None, "일기"])
    assert score("a.xlsx", "b.xlsx")[0] == 0
    header, rows = read_output(tmp_path / "b.xlsx")
    assert header[:4] == [None, "일기", None, "label"]
    assert [row[:3] for row in rows] == [[1, "기뻐", None], [2, "화가 나", "밖"]]
    assert score("a.xlsx", "b.jsonl")[0] == 0
    assert read_output(tmp_path / "b.jsonl")[0][:4] == ["column A", "일기", "column C", "label"]


def test_names_that_the_input_has_already(score, tmp_path: Path) -> None:
    write_input(tmp_path / "a.csv", [["기뻐", "상처"]], ["일기", "label"])
    assert (
        "note: the input has such columns already: the added ones end in _2"
        in (score("a.csv", "b.csv")[2])
    )
    header = (tmp_path / "b.csv").read_text(encoding="utf-8-sig").split("\n")[0]
    assert header.startswith("일기,label,label_2,p(분노)_2,")
    score("b.csv", "c.csv")
    assert ",label_3,p(" in (tmp_path / "c.csv").read_text(encoding="utf-8")


def test_what_the_formula_guard_changes(score, tmp_path: Path) -> None:
    plain = ["-1.5", "+3", "-1,234.5", "-2e-3", "+5%", "1=1", ""]
    guarded = ["=1+1", "+82-10-1234", "-", "-1+1", "@a", "\tx", "＝1", "-1.5.x"]
    rows = [["기뻐", cell] for cell in plain + guarded]
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["일기", "=값"], *rows])
    _, _, err = score("a.csv", "b.csv")
    assert err == [
        "note: b.csv: an apostrophe before 9 cells that a spreadsheet would run as a formula, "
        "in =값 (9)"
    ]
    header, rows = read_output(tmp_path / "b.csv")
    assert header[1] == "'=값"
    assert [row[1] for row in rows] == [*plain[:-1], None, *(f"'{cell}" for cell in guarded)]


def test_a_long_text_is_read_whole(score, loaded: Classifier, tmp_path: Path) -> None:
    """Its end decides, which lies far behind max_len."""
    long = "심장이 뛰어. " * 5 + "합격했어 웃음이 나! " * 40
    write_input(tmp_path / "a.jsonl", [["짧은 글"], [long], ["기뻐"]], ["일기"])
    assert loaded.is_cut([long]).tolist() == [True]
    score("a.jsonl", "b.jsonl")
    rows = read_output(tmp_path / "b.jsonl")[1]
    reading = loaded.read(long)
    assert reading.label == "기쁨" != loaded.predict([long])[0].label
    assert rows[1][1] == reading.label
    expected = [reading.probabilities[name] for name in loaded.labels]
    assert rows[1][2:] == pytest.approx(expected, abs=1e-5)


def test_answers_that_are_not_sure(score, tmp_path: Path) -> None:
    write_input(tmp_path / "a.csv")
    score("a.csv", "b.csv", "일기", "--unsure-below", "1")
    assert {row[3] for row in read_output(tmp_path / "b.csv")[1]} == {"모름", None}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_korean_names_of_files_and_columns(score, tmp_path: Path, form: str) -> None:
    """macOS writes file names decomposed, and some programs write headers so."""
    source = unicodedata.normalize(form, "나의 일기.csv")
    column = unicodedata.normalize(form, "일기")
    (tmp_path / source).write_text(f"{column}\n기뻐\n", encoding="utf-8")
    output = unicodedata.normalize(form, "점수 매긴 것.jsonl")
    assert score(source, output)[:2] == (0, f"{output}: 1 rows\n")
    assert next(iter(json.loads((tmp_path / output).read_text(encoding="utf-8")))) == column


def test_a_bar_with_rate_and_time_left_in_a_terminal(
    score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_input(tmp_path / "a.csv")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    err = "\n".join(score("a.csv", "b.csv")[2])
    assert "scoring:   0%" in err and "6/6 [00:0" in err and "row/s" in err


# Runs that were stopped


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_file, "BATCH", 2)


class Stopping(Classifier):
    """Is stopped, as by Ctrl-C, after some chunks; counts the texts that it scores."""

    left = 10**9
    seen = 0

    def predict_whole(self, texts: Any, unsure_below: float = 0.0):
        if Stopping.left == 0:
            raise SystemExit(130)
        Stopping.left -= 1
        Stopping.seen += len(texts)
        return super().predict_whole(texts, unsure_below)


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    monkeypatch.setattr(score_file, "Classifier", Stopping)

    def stop_after(chunks: int) -> None:
        Stopping.left, Stopping.seen = chunks, 0

    return stop_after


MANY = [[text, f"은밀한 메모 {n}"] for n in range(4) for text in ("기뻐", "화가 나", "심장이 뛰어")]


def contents(path: Path) -> object:
    """Of an output; an .xlsx by its cells, the others by their bytes."""
    return read_output(path) if path.suffix == ".xlsx" else path.read_bytes()


@pytest.mark.parametrize("form", FORMATS)
def test_a_stopped_run_goes_on(score, tmp_path: Path, small_parts, stop_after, form: str) -> None:
    write_input(tmp_path / f"a{form}", MANY, ["일기", "메모"])
    score(f"a{form}", f"whole{form}")
    (tmp_path / f"b{form}").write_text("old", encoding="utf-8")
    stop_after(4)
    code, out, err = score(f"a{form}", f"b{form}")
    assert (code, out) == (130, "")
    assert err == ["note: 8 rows are scored; the same command goes on from there"]
    assert (tmp_path / f"b{form}").read_text(encoding="utf-8") == "old"
    parts = tmp_path / f".b{form}.parts"
    assert stat.S_IMODE(parts.stat().st_mode) == 0o700
    for path in parts.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        content = path.read_bytes()
        assert "은밀한".encode() not in content and "심장이".encode() not in content
    stop_after(10**9)
    code, out, err = score(f"a{form}", f"b{form}")
    assert (code, out) == (0, f"b{form}: 12 rows\n")
    assert err == ["note: going on: 8 of 12 rows are scored already"]
    assert Stopping.seen == 4
    assert contents(tmp_path / f"b{form}") == contents(tmp_path / f"whole{form}")
    assert not parts.exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[30] ^= 255
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "a flipped bit": flip,
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
    "of another kind": lambda path: pq.write_table(pa.table({"a": [1, 2]}), path),
    "of another length": lambda path: pq.write_table(pq.read_table(path)[:1], path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_is_made_again(
    score, tmp_path: Path, small_parts, stop_after, damage: str
) -> None:
    write_input(tmp_path / "a.csv", MANY, ["일기", "메모"])
    score("a.csv", "whole.csv")
    stop_after(4)
    score("a.csv", "b.csv")
    DAMAGE[damage](tmp_path / ".b.csv.parts/00000001.parquet")
    stop_after(10**9)
    assert score("a.csv", "b.csv")[0] == 0
    assert Stopping.seen == 6
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("what", ["input", "classifier", "options", "unreadable"])
def test_parts_of_another_run_are_not_taken(
    score, classifier: Path, tmp_path: Path, small_parts, stop_after, what: str
) -> None:
    write_input(tmp_path / "a.csv", [[*row, row[0]] for row in MANY], ["일기", "메모", "다른"])
    stop_after(4)
    score("a.csv", "b.csv")
    stop_after(10**9)
    more, named = [], what
    if what == "input":
        write_input(tmp_path / "a.csv", [[*row, "."] for row in MANY], ["일기", "메모", "다른"])
    elif what == "classifier":
        copy = shutil.copytree(classifier, tmp_path / "copy")
        (copy / "card.json").write_bytes((copy / "card.json").read_bytes() + b"\n")
        more = ["--model", str(copy)]
        document = json.loads((copy / "classifier.json").read_text(encoding="utf-8"))
        digest = hashlib.sha256((copy / "card.json").read_bytes()).hexdigest()
        document["tokenizer"]["card.json"] = digest
        (copy / "classifier.json").write_text(json.dumps(document), encoding="utf-8")
    elif what == "unreadable":
        (tmp_path / ".b.csv.parts/run.json").write_text("{", encoding="utf-8")
        named = "input and classifier and options"
    column = "다른" if what == "options" else "일기"
    code, _, err = score("a.csv", "b.csv", column, *more)
    assert code == 0
    assert err == [f"note: .b.csv.parts: the stopped run had another {named}; starting anew"]
    assert Stopping.seen == 12


def test_one_run_at_a_time(score, tmp_path: Path) -> None:
    write_input(tmp_path / "a.csv")
    (tmp_path / ".b.csv.parts").mkdir()
    with locks.acquire_free(tmp_path / ".b.csv.parts/lock"):
        code, _, err = score("a.csv", "b.csv")
    assert (code, err[-1]) == (1, "error: b.csv: another run is writing it; wait for its end")
    assert not (tmp_path / "b.csv").exists()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_parts_that_somebody_else_put_there(score, tmp_path: Path, kind: str) -> None:
    write_input(tmp_path / "a.csv")
    (tmp_path / "elsewhere").mkdir()
    parts = tmp_path / ".b.csv.parts"
    parts.symlink_to("elsewhere") if kind == "link" else parts.write_text("", encoding="utf-8")
    code, _, err = score("a.csv", "b.csv")
    assert (code, err[-1]) == (1, "error: .b.csv.parts: is no folder of yours; remove it")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("form", FORMATS)
def test_an_input_that_changes_on_the_way(
    score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    source = write_input(tmp_path / f"a{form}")
    (tmp_path / f"b{form}").write_text("old", encoding="utf-8")

    class Slow(Classifier):
        def predict_whole(self, *given: Any):
            os.utime(source, ns=(1, 1))  # as if somebody saved it again
            return super().predict_whole(*given)

    monkeypatch.setattr(score_file, "Classifier", Slow)
    code, _, err = score(source.name, f"b{form}")
    complaint = f"error: {source.name}: was changed while it was read; run it again"
    assert (code, err[-1]) == (1, complaint)
    assert (tmp_path / f"b{form}").read_text(encoding="utf-8") == "old"
    assert not (tmp_path / f".b{form}.parts").exists()


@pytest.mark.parametrize("form", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("limit", [600, 20_000], ids=["part", "output"])
def test_a_full_disk(score, tmp_path: Path, form: str, limit: int) -> None:
    digits = [hashlib.sha256(bytes([n])).hexdigest() for n in range(200)]
    rows = [["기뻐", "".join(digits[n:] + digits[:n])] for n in range(200)]
    write_input(tmp_path / "a.csv", rows, ["일기", "메모"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        code, _, err = score("a.csv", f"b{form}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = err
    named = {600: f".b{form}.parts/", 20_000: f"b{form}: "}[limit]
    assert code == 1 and line.startswith(f"error: cannot write {named}") and "too large" in line
    assert not (tmp_path / f"b{form}").exists()
    assert score("a.csv", f"b{form}")[0] == 0


KILLED = """
import os, sys
from pathlib import Path
from storyflower import Classifier, score_file
from storyflower.common.errors import InputError, exit_with_line

class Slow(Classifier):
    left = 3

    def predict_whole(self, *given):
        if not Slow.left:
            print("here", flush=True)
            sys.stdin.read()
        Slow.left -= 1
        return super().predict_whole(*given)

score_file.BATCH = 2
if sys.argv[4:]:
    score_file.Classifier = Slow
folder, source, output = map(Path, sys.argv[1:4])
exit_with_line(lambda: print(score_file.score_file(
    folder=folder, source=source, column="일기", output=output
).rows))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(classifier: Path, tmp_path: Path) -> None:
    """With SIGKILL, in a process of its own, and again as somebody calls it again."""
    form = ".csv"
    source, output = write_input(tmp_path / f"a{form}", MANY, ["일기", "메모"]), f"b{form}"
    words = [sys.executable, "-c", KILLED, classifier, source]
    options = {"cwd": ROOT, "text": True, "encoding": "utf-8"}
    streams = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    child = subprocess.Popen([*words, tmp_path / output, "slow"], **options, **streams)
    try:
        assert child.stdout.readline() == "here\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait(60) == -signal.SIGKILL
    finally:
        child.kill()
        child.communicate()
    names = {path.name for path in (tmp_path / f".{output}.parts").iterdir()}
    assert {f"{number:08}.parquet" for number in range(3)} < names
    done = subprocess.run(
        [*words, tmp_path / output], **options, capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "12\n"), done.stderr
    assert done.stderr == "note: going on: 6 of 12 rows are scored already\n"
    assert {path.name for path in tmp_path.iterdir()} == {source.name, output}
    whole = tmp_path / f"whole{form}"
    score_file.score_file(folder=classifier, source=source, column="일기", output=whole)
    _, expected = read_output(whole)  # in chunks of other sizes, so with other last digits
    for row, same in zip(read_output(tmp_path / output)[1], expected, strict=True):
        assert row[:3] == same[:3] and row[3:] == pytest.approx(same[3:], abs=1e-5)


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from storyflower import score_file
from storyflower.predict import Prediction

class Fast:
    labels = ("기쁨", "슬픔")

    @classmethod
    def load(cls, folder, precision):
        return cls()

    def predict_whole(self, texts, unsure_below):
        answer = Prediction("기쁨", {"기쁨": 0.75, "슬픔": 0.25})
        return [answer] * len(texts), np.zeros(len(texts))

def peak():
    # KiB; bytes on macOS. Linux's ru_maxrss is that of the process that started this one, too.
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

score_file.Classifier = Fast
score_file.digest = str  # of the classifier's folder
for source in map(Path, sys.argv[1:]):
    score_file.score_file(folder=source.parent / "none", source=source, column="일기",
                          output=source.with_name(f"out{source.suffix}"))
    print(peak())
"""


@pytest.mark.slow
def test_a_long_file_needs_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    """The classifier is a stand-in: what grows would be the reading, the parts or the writing."""
    sources = []
    for count in (20_000, 200_000):
        rows = [[f"{n}번째 일기", hashlib.sha256(b"%d" % n).hexdigest()] for n in range(count)]
        for form in (".csv", ".jsonl", ".parquet"):
            path = tmp_path / f"{count}{form}"
            sources.append(write_input(path, rows, ["일기", "메모"]))
    del rows
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *sources],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _, _, short, *long = (int(line) for line in done.stdout.split())  # KiB; bytes on macOS
    # 180,000 rows more are 18 MB in a .csv, and some 60 MB as Python's objects.
    assert max(long) - short < 40 * 1024 * (1024 if sys.platform == "darwin" else 1)


FREED = """
import sys
from pathlib import Path
from storyflower import score_file

answers_of = score_file.answers_of

def told(*given):
    print(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
    return answers_of(*given)

score_file.answers_of = told
score_file.BATCH = 150
folder, source = map(Path, sys.argv[1:])
score_file.score_file(folder=folder, source=source, column="일기", output=source.with_name("b.csv"))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told to give memory back")
def test_what_a_part_has_freed_goes_back_to_the_system(interim: Path, tmp_path: Path) -> None:
    """With the encoder that ships, for the tiny one's tensors are too small to leave much."""
    prepare.prepare(ROOT / "encoders/seedling.yaml", tmp_path / "encoder")
    labels = LabelIndex.load(interim / "labels.json")
    facts = {"params": {"max_len": 64, "dr_rate": 0.1}}
    network = build_classifier(tmp_path / "encoder", len(labels), 0.1)
    folder = tmp_path / "classifier"
    save_classifier(network, folder, encoder=tmp_path / "encoder", labels=labels, facts=facts)
    rng = random.Random(1)
    words = " ".join(text for group in WORDS.values() for text in group).split()
    rows = [[" ".join(rng.choices(words, k=rng.randint(1, 60)))] for _ in range(600)]
    write_input(tmp_path / "a.csv", rows, ["일기"])
    done = subprocess.run(
        [sys.executable, "-c", FREED, folder, tmp_path / "a.csv"],
        cwd=ROOT,
        # oneDNN keeps what it has compiled for a matrix's size, up to a number that takes long
        env=environment_of(OMP_NUM_THREADS="1", ONEDNN_PRIMITIVE_CACHE_CAPACITY="32"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    none, *later = map(int, done.stdout.split())  # KiB, before each part
    # 60 MiB were seen, and 280 where nothing is given back
    assert max(later) - none < 120 * 1024


# Files that are broken


CSV = "일기,메모\n은밀한 글,a\n"
LINE = '{"일기": "은밀한 글"}\n'
HEAD = "일기,메모\n"


def parquet_bytes(**columns: list | pa.Array) -> bytes:
    return bytes_of(pa.table(columns))


def bytes_of(table: pa.Table, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


class NoSecrets(encryption.KmsClient):
    """Keeps a key by writing it down."""

    def wrap_key(self, key: bytes, _: str) -> bytes:
        return base64.b64encode(key)


def encrypted(plaintext_footer: bool) -> bytes:
    """A column, or the whole file, that only a key opens."""
    how = encryption.EncryptionConfiguration(
        footer_key="k", column_keys={"c": ["일기"]}, plaintext_footer=plaintext_footer
    )
    factory = encryption.CryptoFactory(lambda _: NoSecrets())
    access = encryption.KmsConnectionConfig()
    properties = factory.file_encryption_properties(access, how)
    return bytes_of(pa.table({"일기": ["은밀한"]}), encryption_properties=properties)


def plain(checksum: bool) -> bytes:
    """Pages that hold the texts as they are; 은밀한 글 077 and 메모 077 stand there once."""
    rows = [f"은밀한 글 {n:03}" for n in range(300)], [f"메모 {n:03}" for n in range(300)]
    table = pa.table({"일기": rows[0], "메모": rows[1]})
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": checksum}
    return bytes_of(table, write_statistics=False, **options)


def changed(content: bytes, before: bytes, after: bytes) -> bytes:
    assert content.count(before) == 1 and len(before) == len(after)
    return content.replace(before, after)


WHOLE = parquet_bytes(일기=["은밀한 글"] * 9, 메모=["은밀한 메모"] * 9)
TWICE = pa.Table.from_arrays([pa.array(["은밀한"])] * 2, ["일기", "일기"])
BAD_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
)
DAMAGED = "not a Parquet file, damaged or cut off; write it again"
HOSTILE = [
    (b"PAR1", DAMAGED),
    (WHOLE[:-8] + b"\0\0\0\0PAR1", DAMAGED),
    (WHOLE[:-8] + b"\xf0\xff\xff\xffPAR1", DAMAGED),  # a footer of 4 GiB
    (WHOLE[:-4] + b"PARE", "a.parquet: encrypted; write it again without encryption"),
    (encrypted(plaintext_footer=False), "a.parquet: encrypted; write it again without"),
    (encrypted(plaintext_footer=True), "a.parquet: encrypted; write it again without"),
    # Inside a page; a checksum tells of any change, in any column.
    (changed(plain(False), "글 077".encode(), b"\xff" * 7), "row 78: 일기 is not utf-8"),
    (changed(plain(False), b"\x11\0\0\0" + "은밀한 글 077".encode(), b"\xff" * 21), DAMAGED),
    (changed(plain(True), "글 077".encode(), "글 078".encode()), DAMAGED),
    (changed(plain(True), "메모 077".encode(), "메모 078".encode()), DAMAGED),
    (bytes_of(pa.table({"일기": ["은밀한"] * 3}).select([])), "no column 일기; found none"),
    (parquet_bytes(글=[{"일기": "은밀한"}]), "no column 일기; found other names in columns A"),
    (parquet_bytes(일기=[["은밀한"]]), "column 일기 has the type list<element: string>; the texts"),
    (parquet_bytes(일기=[{"\n글": ""}]), "column 일기 has the type struct< 글: string>; the texts"),
    (parquet_bytes(일기=["은밀한".encode()]), "column 일기 has the type binary; the texts"),
    (parquet_bytes(일기=pa.array([7, 7]).dictionary_encode()), "has the type int64; the texts"),
    (parquet_bytes(**{"일기\0\x1b": [1]}), "a.parquet: column 일기 has the type int64; the texts"),
]
BROKEN: list[tuple[str, bytes, str]] = [
    ("a.csv", b"", "the file is empty"),
    ("a.csv", CSV.encode() + b"\xff\xff,b\n", "row 3: neither utf-8 nor cp949 (byte "),
    ("a.csv", (CSV + '"은밀한"글,b\n').encode(), "row 3: broken csv"),
    ("a.csv", (CSV + "은밀한,b,c,d\n").encode(), "row 3: it has 4 fields and the header (row 1) 2"),
    ("a.csv", CSV.replace("일기", "글").encode(), "no column 일기; found "),
    ("a.csv", CSV.replace("메모", "일기").encode(), "2 columns named 일기; keep one"),
    ("a.jsonl", b"", "the file is empty; expected one JSON object a line"),
    ("a.jsonl", LINE.encode() + b'{"a": "\xff"}\n', "row 2: not utf-8"),
    ("a.jsonl", (LINE + "[1]\n").encode(), "row 2: no JSON object (no object)"),
    ("a.jsonl", (LINE + '"은밀한"\n').encode(), "row 2: no JSON object (no object)"),
    ("a.jsonl", (LINE + LINE[:-3]).encode(), "row 2: no JSON object (Unterminated string"),
    ("a.jsonl", LINE.encode("utf-16"), "row 1: not utf-8"),
    ("a.jsonl", (LINE + "[" * 100_000).encode(), "row 2: no JSON object (nested too deep)"),
    ("a.jsonl", (LINE + '{"a": ' + "1" * 5000 + "}").encode(), "(a number is too long)"),
    ("a.jsonl", (LINE + '{"a": 1e999}').encode(), "row 2: no JSON object (a number is too large)"),
    ("a.jsonl", (LINE + '{"a": -Infinity}').encode(), "(a number is too large)"),
    ("a.jsonl", (LINE + '{"일기": "\\ud800"}').encode(), "(half of a surrogate pair)"),
    ("a.jsonl", (LINE + '{"일기": "은밀한", "일기": ""}').encode(), "(a key is there twice)"),
    ("a.jsonl", (LINE + '{"일기": 7}').encode(), "row 2: 일기 holds a number, date or truth"),
    ("a.jsonl", (LINE + '{"일기": ["은밀한"]}').encode(), "row 2: 일기 holds a list or object"),
    ("a.jsonl", ('{"일기": 7}\n' * 3).encode(), "3 cells are no text (row 1 일기; row 2 일기; "),
    ("a.jsonl", LINE.replace("일기", "글").encode(), "no column 일기; found "),
    ("a.jsonl", LINE.encode() + b" " * 2**25, "row 2: over 4,194,304 characters in one line"),
    ("a.parquet", b"", "not a Parquet file, damaged or cut off"),
    ("a.parquet", CSV.encode() * 9, "not a Parquet file, damaged or cut off"),
    ("a.parquet", WHOLE[:-100], "not a Parquet file, damaged or cut off"),
    (
        "a.parquet",
        WHOLE[:40] + b"\xff" * 60 + WHOLE[100:],
        "not a Parquet file, damaged or cut off",
    ),
    ("a.parquet", parquet_bytes(글=["은밀한"]), "no column 일기; found other names in columns A"),
    (
        "a.parquet",
        parquet_bytes(일기=[1, 2]),
        "column 일기 has the type int64; the texts must be str",
    ),
    ("a.xlsx", CSV.encode(), "not a workbook, whatever its name says"),
    *(("a.parquet", content, complaint) for content, complaint in HOSTILE),
]


@pytest.mark.parametrize("written", [".csv", ".parquet"])
@pytest.mark.parametrize(("name", "content", "complaint"), BROKEN, ids=range(len(BROKEN)))
def test_broken_files(
    score, tmp_path: Path, name: str, content: bytes, complaint: str, written: str
) -> None:
    """One line, before anything is scored, without the text; the old output stays."""
    (tmp_path / name).write_bytes(content)
    (tmp_path / f"b{written}").write_text("old", encoding="utf-8")
    code, out, err = score(name, f"b{written}")
    assert (code, out) == (1, "")
    (line,) = err
    assert line.startswith(f"error: {name}") and complaint in line and "은밀한" not in line
    assert (tmp_path / f"b{written}").read_text(encoding="utf-8") == "old"
    assert {path.name for path in tmp_path.iterdir()} == {name, f"b{written}"}


def test_a_column_with_control_characters_in_its_name(score, tmp_path: Path) -> None:
    """A message about it is one line, and turns no colour on."""
    pq.write_table(pa.table({"일기": ["a"], "메\n모\0\x1b[31m": [b""]}), tmp_path / "a.parquet")
    code, _, (line,) = score("a.parquet", "b.csv")
    assert code == 1 and "a.parquet: column 메 모[31m has the type binary, which only" in line


FEW = ["심장이 뛰어", None, "합격했어 웃음이 나"]
ODD: dict[str, tuple[pa.Table, int]] = {
    "large strings": (pa.table({"일기": pa.array(FEW, pa.large_string())}), 3),
    "string views": (pa.table({"일기": pa.array(FEW, pa.string_view())}), 3),
    "a dictionary": (pa.table({"일기": pa.array(FEW).dictionary_encode()}), 3),
    "nulls": (pa.table({"일기": pa.nulls(3)}), 3),
    "no rows": (pa.table({"일기": pa.array([], pa.string())}), 0),
    "a line break in the name": (pa.table({"일\n기": FEW, "일": ["기뻐"] * 3}), 3),
    "a NUL in the name": (pa.table({"일\0 기": FEW}), 3),
    "a dot in the name": (pa.table({"글": [{"일 기": "기뻐"}] * 3, "글.일 기": FEW}), 3),
    "twins": (pa.Table.from_arrays([pa.array(FEW)] * 3, ["일기", "메모", "메모"]), 3),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_tables_that_can_be_read(score, loaded: Classifier, tmp_path: Path, case: str) -> None:
    table, rows = ODD[case]
    column = {"a line break in the name": "일 기", "a NUL in the name": "일 기"}.get(case, "일기")
    column = "글.일 기" if case == "a dot in the name" else column
    pq.write_table(table, tmp_path / "a.parquet")
    told = [] if case == "nulls" else [text for text in FEW[:rows] if text]
    labels = iter([answer.label for answer in loaded.predict(told)])
    expected = [next(labels) if told and text else None for text in FEW[:rows]]
    for written in (".parquet", ".csv"):
        assert score("a.parquet", f"b{written}", column)[0] == 0
        header, found = read_output(tmp_path / f"b{written}")
        assert header[: len(table.column_names)] == table.column_names
        assert [row[header.index("label")] for row in found] == expected
    written = pq.ParquetFile(tmp_path / "b.parquet").read()
    assert written.schema.types[: table.num_columns] == table.schema.types
    for index, column in enumerate(table.columns):
        assert written.column(index).to_pylist() == column.to_pylist()


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (TWICE, "a.parquet: 2 columns named 일기; keep one"),
        (pa.table({"일기": BAD_UTF8}), "a.parquet, row 2: 일기 is not utf-8"),
    ],
)
def test_tables_that_cannot_be_read(score, tmp_path: Path, table: pa.Table, complaint: str) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    for written in FORMATS:
        code, _, (line,) = score("a.parquet", f"b{written}")
        assert (code, line) == (1, f"error: {complaint}")


def test_names_that_only_a_spreadsheet_can_hold(score, tmp_path: Path) -> None:
    write_input(tmp_path / "a.csv", [["기뻐", "1", "2"]], ["일기", "값", "값"])
    assert score("a.csv", "b.xlsx")[0] == 0
    complaint = "error: a.csv: columns B and C have the same name, which a .parquet cannot hold; "
    assert score("a.csv", "b.parquet") == (1, "", [complaint + "rename one"])


def test_what_a_workbook_cannot_hold_is_said_first(
    score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_input(tmp_path / "a.jsonl", [["기뻐", "나" * 32_768]], ["일기", "메모"])
    stop = "nothing is scored before"
    monkeypatch.setattr(Classifier, "predict_whole", lambda *_: pytest.fail(stop))
    code, _, (line,) = score("a.jsonl", "b.xlsx")
    assert code == 1 and line.startswith("error: b.xlsx: cell B2 would have 32,768 characters")
    monkeypatch.setattr("storyflower.sheets.write.MAX_ROWS", 1)
    write_input(tmp_path / "a.jsonl", [["기뻐"]], ["일기"])
    assert score("a.jsonl", "b.xlsx")[2] == [
        "error: b.xlsx: a sheet ends at row 1; write a .csv",
    ]


@pytest.mark.parametrize(
    ("columns", "read"),
    [
        (["비고", "일기"], "비고"),
        ("일기", "일기"),
        (None, "사람문장1"),  # a classifier from before the key
        ([], "damaged"),
    ],
)
def test_the_column_that_the_classifier_was_trained_on(
    classifier: Path, tmp_path: Path, columns: object, read: str
) -> None:
    own = tmp_path / "own"
    shutil.copytree(classifier, own)
    document = json.loads((own / "classifier.json").read_text(encoding="utf-8"))
    document["params"].pop("text_columns", None)
    if columns is not None:
        document["params"]["text_columns"] = columns
    (own / "classifier.json").write_text(json.dumps(document), encoding="utf-8")
    rows = [["합격했어", "따지고 싶어", ""]]
    source = write_input(tmp_path / "in.csv", rows, ["사람문장1", "일기", "비고"])
    words = ["predict", "--model", str(own), "--input", str(source), "--output"]
    output = tmp_path / "out.csv"
    if read == "damaged":
        with pytest.raises(InputError, match="classifier.json: damaged"):
            main([*words, str(output)])
        return
    main([*words, str(output)])
    given = tmp_path / "given.csv"
    main([*words, str(given), "--column", read])
    assert output.read_bytes() == given.read_bytes()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--input", "in.xlsx"], "--input and --output belong together"),
        (["--output", "out.xlsx"], "--input and --output belong together"),
        (["--input", "in.xlsx", "--output", "out.csv", "합격"], "belong together, without"),
        (["--input", "in.xlsx", "--output", "out.csv", "--json"], "are for sentences, not for"),
        (["--input", "in.xlsx", "--output", "out.csv", "--show-text"], "are for sentences, not"),
        (["--column", "일기", "합격"], "--column is for --input"),
        (
            ["--input", "in.xlsx", "--output", "out.csv"],
            "no column 사람문장1; found 번호, other names",
        ),
        (["--input", "in.xlsx", "--output", "out.ods", "--column", "일기"], "out.ods: --input"),
        (["--input", "in.xls", "--output", "out.csv", "--column", "일기"], "in.xls: --input"),
        (["--input", "none.xlsx", "--output", "out.csv"], "none.xlsx: cannot be read (No such"),
        (["--input", "no.csv", "--output", "out.csv"], "no.csv: is no regular file"),
        (["--input", "in.xlsx", "--output", "no.csv", "--column", "일기"], "no.csv: is a folder"),
        (["--input", "in.xlsx", "--output", "nowhere/out.csv"], "nowhere: no such folder"),
        (["--input", "in.xlsx", "--output", "in.xlsx", "--column", "일기"], "is the input"),
        (["--input", "in.xlsx", "--output", "no.csv/../in.xlsx"], "is the input"),
        (["--input", "in.xlsx", "--output", "link.xlsx"], "is the input"),
        (["--input", "in.xlsx", "--output", "가" * 82 + ".csv"], "the name is too long"),
    ],
)
def test_what_predict_refuses(
    score, tmp_path: Path, words: list[str], complaint: str, capfd
) -> None:
    (tmp_path / "no.csv").mkdir()
    write_input(tmp_path / "in.xlsx")
    (tmp_path / "out.csv").write_text("old", encoding="utf-8")
    (tmp_path / "link.xlsx").symlink_to("in.xlsx")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit) as stop:
        exit_with_line(lambda: main(["predict", *words]))
    out, err = capfd.readouterr()
    (line,) = err.splitlines()
    assert (stop.value.code, out) == (1, "")
    assert line.startswith("error: ") and complaint in line
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_column_that_begins_with_a_dash(score, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("-ㅅ-\n합격했어\n", encoding="utf-8")
    assert score("a.csv", "b.csv", "-ㅅ-")[0] == 0


def test_rows_of_unknown_words_are_named(
    score, tmp_path: Path, small_parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of parts that an earlier run has made."""
    write_input(tmp_path / "a.csv", [["기뻐"]] + [["뷁뷁 뒓 쀍"]] * 12, ["일기"])
    code, _, err = score("a.csv", "b.csv")
    assert code == 0
    assert err[0].startswith(
        "note: rows 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 2 more are mostly [UNK]"
    )


def test_more_rows_than_are_held_in_memory_keep_their_order(
    score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_input(tmp_path / "a.csv", MANY, ["일기", "메모"])
    score("a.csv", "whole.csv")
    monkeypatch.setattr(score_file, "BATCH", 5)
    score("a.csv", "rows.csv")
    monkeypatch.setattr(score_file, "BATCH_TEXT", 10)
    score("a.csv", "characters.csv")
    whole = read_output(tmp_path / "whole.csv")[1]
    assert [row[:2] for row in whole] == MANY
    for name in ("rows.csv", "characters.csv"):
        assert [row[:3] for row in read_output(tmp_path / name)[1]] == [row[:3] for row in whole]
