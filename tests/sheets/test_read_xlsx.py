"""Workbooks as programs write them, and what the process does in which they are opened."""

import datetime
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import openpyxl
import psutil
import pytest
import xlsxwriter

from storyflower.common.errors import InputError
from storyflower.sheets import read_xlsx, xlsx_child
from storyflower.sheets.read import open_sheet
from storyflower.sheets.read_xlsx import read_workbook
from storyflower.sheets.records import open_records
from storyflower.sheets.sheet import column_of
from storyflower.sheets.write import write_rows
from tests.support import ROOT, write_workbook

WANTED = {"감정_대분류", "사람문장1"}
HEADER = ["번호", "감정_대분류", "사람문장1"]
ROWS = [["가", "기쁨", "합격했어"], ["나", "분노", "화가 나"], ["다", "불안", "무서워"]]
SUMMARY = ["내보낸 날", "행 수"]


def book_of(path: Path, **sheets: list[list]) -> Path:
    """A workbook with these sheets, its texts in sharedStrings.xml."""
    with xlsxwriter.Workbook(path, {"strings_to_formulas": False}) as book:
        for name, rows in sheets.items():
            sheet = book.add_worksheet(name)
            for number, row in enumerate(rows):
                sheet.write_row(number, 0, row)
    return path


def rewritten(path: Path, change: Callable[[str, bytes], tuple[str, bytes]]) -> Path:
    """The workbook with its members' names and contents changed."""
    with zipfile.ZipFile(path) as archive:
        parts = [change(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts:
            archive.writestr(name, content)
    return path


def patched(path: Path, member: str, old: bytes, new: bytes) -> Path:
    def change(name: str, content: bytes) -> tuple[str, bytes]:
        assert name != member or old in content
        return name, content.replace(old, new) if name == member else content

    return rewritten(path, change)


def refusal(path: Path, wanted: set[str] = WANTED) -> str:
    with pytest.raises(InputError) as caught:
        list(open_sheet(path, wanted).rows)
    message = str(caught.value)
    assert message.splitlines() == [message] and message.startswith(str(path))
    return message.removeprefix(str(path))


# As programs write them


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("/", "\\"),
        lambda name: name.replace("sharedStrings", "SharedStrings"),
        str.upper,
    ],
    ids=["backslashes", "SharedStrings", "capitals"],
)
def test_names_of_members_that_excel_opens(tmp_path: Path, rename: Callable[[str], str]) -> None:
    path = book_of(tmp_path / "a.xlsx", 대화=[HEADER, *ROWS])
    rewritten(path, lambda name, content: (rename(name), content))
    assert [cells for _, cells in open_sheet(path, WANTED).rows] == ROWS


def test_rows_and_columns_are_the_sheets_own(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row, cells in zip((4, 6, 9), ([*HEADER], *ROWS), strict=False):
        for column, cell in enumerate(cells, start=3):
            book.active.cell(row, column, cell)
    book.active.cell(7, 3).number_format = "@"  # formatted, and empty
    book.save(tmp_path / "a.xlsx")
    (sheet,) = read_workbook(tmp_path / "a.xlsx")
    assert list(sheet.rows) == [
        (4, ["", "", *HEADER]),
        (6, ["", "", *ROWS[0]]),
        (9, ["", "", *ROWS[1]]),
    ]


@pytest.mark.parametrize(
    ("cell", "read"),
    [
        ('t="inlineStr"><is><t>가_x000D_나_x0007_</t></is>', "가\r나\x07"),
        ('t="str"><v>가_x000d_나</v>', "가\r나"),
        ('t="inlineStr"><is><t>_xD83D_ _x005F_x000D_</t></is>', "_xD83D_ _x000D_"),
        ('t="inlineStr"><is><r><t>漢</t></r><rPh sb="0" eb="1"><t>한</t></rPh></is>', "漢"),
        ('t="str"><f>A1&amp;"!"</f><v>저장된 글</v>', "저장된 글"),
        ('t="e"><v>#N/A</v>', ""),
        ("><f>1+1</f>", ""),
        ("><v>3</v>", False),
        ('t="b"><v>1</v>', False),
        ('t="d"><v>2024-05-01</v>', False),
    ],
)
def test_what_a_cell_holds(tmp_path: Path, cell: str, read: object) -> None:
    path = book_of(tmp_path / "a.xlsx", 대화=[["자리", "끝"]])
    new = f'<c r="A1" {cell}</c>'.encode()
    patched(path, "xl/worksheets/sheet1.xml", b'<c r="A1" t="s"><v>0</v></c>', new)
    (sheet,) = read_workbook(path)
    assert list(sheet.rows) == [(1, [read, "끝"])]


def number_cell(path: Path, value: str, shown: str = "General") -> Path:
    """A workbook with the number in B2, as another program may write it, shown in a format."""
    with xlsxwriter.Workbook(path) as book:
        sheet = book.add_worksheet("대화")
        sheet.write_row(0, 0, ["일기", "값"])
        sheet.write_row(1, 0, ["글", 7.25], book.add_format({"num_format": shown}))
    return patched(path, "xl/worksheets/sheet1.xml", b"<v>7.25</v>", f"<v>{value}</v>".encode())


@pytest.mark.parametrize(
    ("value", "read"),
    [("nan", "null"), ("NaN", "null"), ("1e400", '"inf"'), ("-3", "-3"), ("1e12", "1000000000000")],
)
def test_numbers_that_json_may_lack(tmp_path: Path, value: str, read: str) -> None:
    records = open_records(number_cell(tmp_path / "a.xlsx", value), "일기")
    write_rows(tmp_path / "a.jsonl", records.names, [cells for _, cells in records.rows()])
    written = (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert written == f'{{"일기": "글", "값": {read}}}\n'


@pytest.mark.parametrize("value", [-3, -0.5, -0.001, 1e12])
@pytest.mark.parametrize(
    "formula",
    ["", "<f>A1-B1</f>", '<f t="shared" ref="B2:B9" si="0">A1-B1</f>', '<f t="shared" si="0"/>']
    + [f"<f>{'+'.join(['A1'] * 30)}</f>"],
)
def test_dates_before_the_calendar_and_behind_it(
    tmp_path: Path, value: float, formula: str
) -> None:
    path = number_cell(tmp_path / "a.xlsx", f"{value}", "yyyy-mm-dd")
    patched(
        path,
        "xl/worksheets/sheet1.xml",
        b"<v>" + str(value).encode(),
        f"{formula}<v>{value}".encode(),
    )
    (sheet,) = read_workbook(path, values=True)
    assert list(sheet.rows)[1] == (2, ["글", value])


def test_a_time_where_another_sheet_has_a_number(tmp_path: Path) -> None:
    with xlsxwriter.Workbook(tmp_path / "a.xlsx") as book:
        time_format = book.add_format({"num_format": "h:mm"})
        for name, cells in {"대화": [0, 0.25, 0.5], "수": [-3.5, -3, -0.25]}.items():
            book.add_worksheet(name).write_row(0, 0, cells, time_format)
    times, numbers = (list(it.head)[0][1] for it in read_workbook(tmp_path / "a.xlsx", values=True))
    assert times == [datetime.time(0), datetime.time(6), datetime.time(12)]
    assert numbers == [-3.5, -3, -0.25]


@pytest.mark.parametrize(
    ("value", "shown"), [("1e12", "[h]:mm"), ("-1e12", "[h]:mm"), ("-1e12", "h:mm")]
)
def test_a_duration_that_is_out_of_range(tmp_path: Path, value: str, shown: str) -> None:
    assert refusal(number_cell(tmp_path / "a.xlsx", value, shown), {"일기"}) == (
        ": sheet '대화', row 2: a date or duration that is out of range; format that cell as a "
        "number"
    )


def test_an_error_that_only_other_programs_know(tmp_path: Path) -> None:
    path = book_of(tmp_path / "a.xlsx", 대화=[HEADER, *ROWS])
    cell = b'<c r="A2" t="e"><v>#ERROR!</v></c>'
    patched(path, "xl/worksheets/sheet1.xml", b'<c r="A2" t="s"><v>3</v></c>', cell)
    assert "a cell holds an error that Excel does not know" in refusal(path)


# Which sheet, and where in it


def test_the_dialogues_on_another_sheet(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    counts = [["감정_대분류", "행 수"], ["기쁨", "1"]]
    path = book_of(tmp_path / "a.xlsx", 요약=counts, 대화=[HEADER, *ROWS], 코드=[["값"]])
    sheet = open_sheet(path, WANTED)
    assert sheet.where == f"{path}, sheet '대화'" and sheet.columns == HEADER
    assert list(sheet.rows) == list(enumerate(ROWS, start=2))
    assert capfd.readouterr() == ("", f"note: {path}, sheet '대화': read from this sheet, of 3\n")


@pytest.mark.parametrize("second", [[], ROWS, [["감정_대분류", "대화"], *ROWS]])
def test_more_sheets_that_are_not_read(
    tmp_path: Path, capfd: pytest.CaptureFixture, second: list[list]
) -> None:
    """The second may hold the rows for which the first had no room, without a header."""
    path = book_of(tmp_path / "a.xlsx", 대화=[HEADER, *ROWS], 나머지=second)
    assert list(open_sheet(path, WANTED).rows) == list(enumerate(ROWS, start=2))
    said = f"note: {path}, sheet '대화': read from this sheet, of 2\n"
    assert capfd.readouterr() == ("", said if second else "")


@pytest.mark.parametrize("first", [[], [SUMMARY]])
def test_a_title_above_the_header(
    tmp_path: Path, capfd: pytest.CaptureFixture, first: list[list]
) -> None:
    rows = [["감성 대화 정리본"], [], ["", "화자"], HEADER, *ROWS * 9]
    sheets = {"요약": first} if first else {}
    path = book_of(tmp_path / "a.xlsx", **sheets, 대화=rows)
    sheet = open_sheet(path, WANTED)
    assert sheet.columns == HEADER
    assert list(sheet.rows) == list(enumerate(ROWS * 9, start=5))
    _, err = capfd.readouterr()
    assert err.startswith(f"note: {path}, sheet '대화': ") and err.count("\n") == 1
    assert "the header is row 4; what stands above it is not read" in err
    assert ("read from this sheet, of 2; " in err) == bool(first)


def test_blank_rows_above_the_header_are_no_title(tmp_path: Path, capfd) -> None:
    path = book_of(tmp_path / "a.xlsx", 대화=[[], [], HEADER, *ROWS])
    assert list(open_sheet(path, WANTED).rows) == list(enumerate(ROWS, start=4))
    assert capfd.readouterr() == ("", "")


SECRET = "비밀일기"


@pytest.mark.parametrize(
    ("sheets", "message"),
    [
        (
            {"가": [HEADER, *ROWS], "나": [HEADER, *ROWS]},
            ": 2 sheets could be meant, by the columns 감정_대분류, 사람문장1: sheet '가' has "
            "번호, 감정_대분류, 사람문장1; sheet '나' has 번호, 감정_대분류, 사람문장1; "
            "hide or delete all sheets but one",
        ),
        (
            {"가": [[SECRET, "연령"], ROWS[0]], "나": [[SECRET]], "빈": []},
            ": 2 sheets could be meant, by the columns 감정_대분류, 사람문장1: sheet '가' has "
            "연령; sheet '나' has other names; hide or delete all sheets but one",
        ),
        (
            {"가": [SUMMARY], "나": [["연령", "감정_대분류", SECRET]]},
            ", sheet '나': no column 사람문장1; found 연령, 감정_대분류, other names in columns C",
        ),
        ({"가": [[SECRET]], "빈": []}, ", sheet '가': no column 사람문장1; found other names in"),
        (
            {"가": [ROWS[0], HEADER, *ROWS]},
            ", sheet '가', row 1: as full as the header, which is row 2; were two files put",
        ),
        ({"가": [], "나": []}, ", sheet '가': the sheet is empty"),
        (
            {"가": [[SECRET]] * 20 + [HEADER, *ROWS]},
            ", sheet '가': no column 사람문장1; found other",
        ),
    ],
)
def test_where_it_is_not_plain(tmp_path: Path, sheets: dict, message: str) -> None:
    path = book_of(tmp_path / "a.xlsx", **sheets)
    with pytest.raises(InputError) as caught:
        column_of(open_sheet(path, WANTED), "사람문장1")
    assert str(caught.value).startswith(f"{path}{message}")
    assert SECRET not in str(caught.value)


# Damage


def test_damage_that_would_be_another_text(tmp_path: Path) -> None:
    """The number of a shared text with one bit changed: only the zip's checksum tells."""
    path = book_of(tmp_path / "a.xlsx", 대화=[HEADER, *ROWS])
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    content = path.read_bytes()
    assert content.count(b'<c r="C3" t="s"><v>8</v>') == 1
    path.write_bytes(content.replace(b'r="C3" t="s"><v>8<', b'r="C3" t="s"><v>0<'))
    assert refusal(path) == ": damaged or truncated workbook; export it again"


@pytest.mark.parametrize(
    ("member", "old", "new"),
    [
        ("xl/sharedStrings.xml", b"<sst", b'<!DOCTYPE sst [<!ENTITY a "b">]><sst'),
        (
            "xl/worksheets/sheet1.xml",
            b't="s"><v>3</v>',
            't="str"><v><![CDATA[앞의 글]]>뒤의 글</v>'.encode(),
        ),
        *(
            ("xl/worksheets/sheet1.xml", b'<c r="A2" t="s"><v>3</v>', f"<c {cell}</v>".encode())
            for cell in ('t="s" r="A2"><v>-1', "r='A2' t='s' s='1'><v>3x", f't="s"><v>{2**64 + 3}')
        ),
    ],
    ids=["document type", "CDATA", "negative", "no number", "beyond 64 bits"],
)
def test_what_calamine_would_read_wrongly(
    tmp_path: Path, member: str, old: bytes, new: bytes
) -> None:
    path = book_of(tmp_path / "a.xlsx", 대화=[HEADER, *ROWS])
    patched(path, member, old, new)
    assert refusal(path) == ": damaged or truncated workbook; export it again"


# The process


def corner(path: Path) -> Path:
    """Two cells, for which calamine asks for 550 GB; then it aborts."""
    book = openpyxl.Workbook()
    book.active.cell(1, 1, "가")
    book.active.cell(2**20, 2**14, "나")
    book.save(path)
    return path


def instead(monkeypatch: pytest.MonkeyPatch, path: Path, code: str) -> None:
    """Another program in the place of the one that opens workbooks."""
    path.write_text(code, encoding="utf-8")
    monkeypatch.setattr(xlsx_child, "__file__", str(path))


def test_a_workbook_that_kills_its_process(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(corner(tmp_path / "a.xlsx"))
    assert message.startswith(": damaged, or too large to be read in 1,024 MiB and 60 s (does")
    assert os.listdir(tmp_path) == ["a.xlsx"]  # no core file


@pytest.mark.parametrize(
    ("code", "limits"),
    [
        ("import time; time.sleep(60)", {"MAX_WAIT": 0.3}),
        ("held = bytearray(2**27); import time; time.sleep(60)", {"MEMORY": 2**26}),
        ("import os; os.abort()", {}),
        ("while True: pass", {"MAX_WAIT": 0.3}),
    ],
    ids=["hangs", "takes memory", "aborts", "computes"],
)
def test_a_process_that_goes_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, limits: dict[str, float]
) -> None:
    path = write_workbook(tmp_path / "a.xlsx", [])
    instead(monkeypatch, tmp_path / "child.py", code)
    for name, value in limits.items():
        monkeypatch.setattr(xlsx_child if name == "MEMORY" else read_xlsx, name, value)
    before, started = psutil.Process().children(), time.monotonic()
    assert ": damaged, or too large to be read in" in refusal(path)
    assert time.monotonic() - started < 20
    assert psutil.Process().children() == before


@pytest.mark.parametrize(
    ("kind", "limit"), [("RLIMIT_DATA", 2**30), ("RLIMIT_CPU", 60), ("RLIMIT_CORE", 0)]
)
def test_the_process_limits_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, limit: int
) -> None:
    folder = str(Path(xlsx_child.__file__).parent)
    code = f"""
import json, resource, sys
sys.path.append({folder!r})
import xlsx_child
def answer(file, no_text):
    raise xlsx_child.Refused(str(resource.getrlimit(resource.{kind})))
xlsx_child.answer = answer
xlsx_child.main()
"""
    instead(monkeypatch, tmp_path / "child.py", code)
    assert refusal(write_workbook(tmp_path / "a.xlsx", [])) == f": ({limit}, {limit})"


def test_a_python_without_calamine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, tmp_path / "child.py", "import no_such_module")
    message = refusal(write_workbook(tmp_path / "a.xlsx", []))
    assert "cannot start what reads workbooks; does it have python-calamine?" in message


def test_a_module_in_the_users_folder_is_not_run(tmp_path: Path, monkeypatch) -> None:
    path = book_of(tmp_path / "a.xlsx", 대화=[HEADER, *ROWS])
    (tmp_path / "json.py").write_text("raise SystemExit(1)", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert len(list(open_sheet(path, WANTED).rows)) == 3


def test_a_sheet_that_is_not_read_to_its_end_leaves_no_process(tmp_path: Path) -> None:
    path = book_of(tmp_path / "a.xlsx", 대화=[HEADER, *ROWS * 5000])
    before = psutil.Process().children()
    sheet = open_sheet(path, WANTED)
    for _ in range(30):
        next(sheet.rows)
    assert psutil.Process().children() != before
    del sheet
    assert psutil.Process().children() == before


def test_the_process_ends_with_who_started_it(tmp_path: Path) -> None:
    path = book_of(tmp_path / "a.xlsx", 대화=[HEADER, *ROWS * 5000])
    code = f"""
import os, psutil
from pathlib import Path
from storyflower.sheets.read_xlsx import read_workbook
from storyflower.sheets.records import open_records
from storyflower.sheets.sheet import column_of
from storyflower.sheets.write import write_rows
sheets = read_workbook(Path({str(path)!r}))
print(psutil.Process().children()[0].pid, flush=True)
os._exit(1)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    pid, deadline = int(done.stdout), time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
