"""What is written is read back as it was, runs nothing, and is there whole or not at all."""

import csv
import datetime
import re
import stat
import sys
import time
from pathlib import Path

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storyflower.common.errors import InputError
from storyflower.sheets import write
from storyflower.sheets.read_xlsx import read_workbook
from tests.support import ROOT, run

# Without what is no character for ever, which calamine leaves spelt out
ANY_TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\ufffe\uffff"), max_size=30
)
STARTS = st.sampled_from(
    ["", "=", "+", "-", "@", "\t", "\r", "＝", "_x0041_", "&lt;", "'", " ", "1", "http://a.b/"]
)
# xlsxwriter takes it for XML of its own.
MARKED = ANY_TEXT.map("<r></is></c><c><f>1</f></c>{}</r>".format)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(STARTS, ANY_TEXT).map("".join) | MARKED, min_size=1, max_size=6))
def test_no_cell_that_is_written_is_a_formula(tmp_path: Path, texts: list[str]) -> None:
    rows = [[text, 0.5] for text in texts]
    write.write_rows(tmp_path / "a.xlsx", ["=머리", "p"], rows)
    (sheet,) = read_workbook(tmp_path / "a.xlsx")
    numbered = list(sheet.rows)
    assert [number for number, _ in numbered] == list(range(1, len(texts) + 2))
    assert [cells[0] for _, cells in numbered] == ["=머리", *texts]  # every character comes back
    book = openpyxl.load_workbook(tmp_path / "a.xlsx")
    for cell in book.active["A"]:
        assert cell.value is None or (cell.data_type == "s" and cell.quotePrefix)
    assert [cell.value for cell in book.active["B"]] == ["p", *[0.5] * len(texts)]

    write.write_rows(tmp_path / "a.csv", ["=머리", "p"], rows)
    with (tmp_path / "a.csv").open(encoding="utf-8-sig", newline="") as file:
        read = [row[0] for row in csv.reader(file)]
    for text, cell in zip(["=머리", *texts], read, strict=True):
        starts = text[:1] in tuple("=+-@\t\r＝") and text
        number = re.fullmatch(r"[+-][0-9]+([.,][0-9]+)*([eE][+-]?[0-9]+)?%?", text)
        assert cell == (f"'{text}" if starts and not number else text)


def test_what_an_xlsx_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.xlsx"
    path.write_bytes(b"old")
    # An emoji is two of the units in which Excel counts.
    for text in ("나" * 32_768, "😀" * 16_384):
        with pytest.raises(InputError, match="cell B3 would have 32,768 characters"):
            write.write_rows(path, ["a", "b"], [["가", "나"], ["가", text]])
    monkeypatch.setattr(write, "MAX_ROWS", 2)
    with pytest.raises(InputError, match="a sheet ends at row 2; write a .csv"):
        write.write_rows(path, ["a"], [["가"], ["나"]])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["나" * 32_767, "😀" * 16_383 + "나"])
def test_the_longest_text(tmp_path: Path, text: str) -> None:
    write.write_rows(tmp_path / "a.xlsx", ["a"], [[text]])
    assert openpyxl.load_workbook(tmp_path / "a.xlsx").active["A2"].value == text


def test_rows_on_their_way_are_the_owners_alone(tmp_path: Path) -> None:
    """xlsxwriter keeps them in a file until the end; nothing is left of it."""
    modes = []

    def rows():
        for n in range(3):
            (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
            modes.append((stat.S_IMODE(folder.stat().st_mode), bool(list(folder.iterdir()))))
            yield [f"글 {n}"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write.write_rows(tmp_path / "a.xlsx", ["a"], rows())
    assert modes == [(0o700, True)] * 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".xlsx", ".csv"])
def test_the_same_rows_are_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    written = []
    for zone in ("Asia/Seoul", "America/New_York"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        write.write_rows(tmp_path / f"a{suffix}", ["a"], [["글"], [1.5]])
        written.append((tmp_path / f"a{suffix}").read_bytes())
    monkeypatch.undo()
    time.tzset()
    assert written[0] == written[1]
    if suffix == ".xlsx":  # which says when it was written
        created = openpyxl.load_workbook(tmp_path / "a.xlsx").properties.created
        assert created == datetime.datetime(2000, 1, 1)


@pytest.mark.parametrize(("rows", "most"), [(20_000, 2**16), (1, 2**11)], ids=["rows", "zip"])
def test_a_full_disk(tmp_path: Path, rows: int, most: int) -> None:
    code = f"""
import resource, signal
from pathlib import Path
from storyflower.common.errors import exit_with_line
from storyflower.sheets.write import write_rows
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))
path = Path({str(tmp_path)!r}, "a.xlsx")
exit_with_line(lambda: write_rows(path, ["a"], ([f"글 {{n}}"] for n in range({rows}))))
"""
    done = run(ROOT, sys.executable, "-c", code)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: cannot write {tmp_path / 'a.xlsx'}: file too large; ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
