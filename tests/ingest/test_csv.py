"""The dialects, encodings and damages that a csv file may have, through ingest."""

import csv
import gzip
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from storyflower.common.errors import InputError
from storyflower.sheets.read import open_sheet
from storyflower.sheets.sheet import cell_text
from tests.ingest.test_ingest import (
    DIALOGUES,
    HEADER,
    dialogues,
    ingest,
    json_items,
    refusal,
    rows_for,
    table,
    write_csv,
    write_json,
    write_jsonl,
    write_workbook,
)

HEADER_LINE = "감정_대분류,감정_소분류,사람문장1,사람문장2"
LINES = [  # what must come out as DIALOGUES
    "기쁨,감사하는,합격했어.,꿈만 같아",
    "상처,고립된,나만 빼고 약속을 잡았더라,",
    "당황,고립된,길을 잃었어,",
    '상처,"가난한, 불우한",도시락을 못 쌌어,"""괜찮아"" 하고\n웃었어"',
]


def write(path: Path, *lines: str, end: str = "\n", encoding: str = "utf-8") -> Path:
    path.write_bytes("".join(line + end for line in lines).encode(encoding))
    return path


def commas_to(delimiter: str, quote: str = '"') -> list[str]:
    """The lines above in another dialect."""
    rows = csv.reader("\n".join([HEADER_LINE, *LINES]).splitlines(keepends=True))
    made = []
    for row in rows:
        cells = [quote + cell.replace(quote, quote * 2) + quote for cell in row]
        made.append(delimiter.join(cells))
    return made


DIALECTS = {
    "semicolon": commas_to(";"),
    "tab": commas_to("\t"),
    "bar": commas_to("|"),
    "single quotes": commas_to(",", "'"),
    "blank before a quote": commas_to(", "),
    "sep= comma": ["sep=,", HEADER_LINE, *LINES],
    "sep= that no header would show": ["SEP=^", *commas_to("^")],
    "separators at the end of a line": [HEADER_LINE, *(line + ",,," for line in LINES)],
    "unnamed column at the end": [HEADER_LINE + ",", *(line + ",7" for line in LINES)],
    "blank lines": ["", " ", HEADER_LINE, "", *LINES[:2], ",,,,,,", *LINES[2:], "\t"],
    "titles above": ["감성 대화 (2024)", ",,화자,", HEADER_LINE, *LINES],
    "names that look the same": [
        unicodedata.normalize(
            "NFD", '"감정_\n대분류",감정_소 분류,\u200b사람문장1\ufeff,사람문장 2'
        ),
        *LINES,
    ],
}


@pytest.mark.parametrize("lines", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_dialects(folder: Path, lines: list[str], encoding: str) -> None:
    write(folder / "Training.csv", *lines, encoding=encoding)
    ingest(folder, target="fine")
    assert dialogues(folder) == DIALOGUES


@pytest.mark.parametrize("encoding", ["cp949", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(folder: Path, encoding: str, end: str) -> None:
    mark = "\ufeff" if "16" in encoding else ""
    write(folder / "Training.csv", mark + HEADER_LINE, *LINES, end=end, encoding=encoding)
    ingest(folder)
    assert dialogues(folder) == DIALOGUES


@pytest.mark.parametrize(
    ("lines", "row", "complaint"),
    [
        ([HEADER_LINE, "기쁨,감사하는,아, 합격했어,둘"], 2, "5 fields and the header (row 1) 4"),
        ([HEADER_LINE, LINES[0], "", "기쁨,감사하는"], 4, "2 fields and the header (row 1) 4"),
        (["제목", *commas_to(";"), "기쁨;감사;가;나;다"], 7, "5 fields and the header (row 2) 4"),
        ([HEADER_LINE, '기쁨,감사하는, "가" 나,다'], 2, "broken csv"),
        ([HEADER_LINE, *LINES, HEADER_LINE, *LINES], 6, "a second header"),
        ([HEADER_LINE, *LINES, "\ufeff" + HEADER_LINE, *LINES], 6, "a second header"),
        ([HEADER_LINE, LINES[0], "사람문장1,사람문장2,감정_대분류,가"], 3, "a second header"),
        ([LINES[0], LINES[1], HEADER_LINE, *LINES], 1, "as full as the header, which is row 3"),
    ],
)
def test_rows_that_could_be_read_wrongly(
    folder: Path,
    lines: list[str],
    row: int,
    complaint: str,
) -> None:
    path = write(folder / "Training.csv", *lines)
    message = refusal(folder)
    assert message.startswith(f"{path}, row {row}: ")
    assert complaint in message
    assert "합격" not in message


ORDINARY = [f"기쁨,감사하는,{n}번째 글,둘" for n in range(9)]
OWN = [f"{n}번째 글,{n % 2}" for n in range(9)]
NUMBERED = [f"{n},{n}번째 글,{n % 2}" for n in range(9)]


@pytest.mark.parametrize(
    "lines",
    [
        [HEADER_LINE, '기쁨,감사하는,"첫 글,둘', *ORDINARY, '슬픔,우울한,셋",넷'],
        [HEADER_LINE, '기쁨,감사하는,"첫 글,둘', '슬픔,우울한,셋",넷', *ORDINARY],
        [HEADER_LINE, '기쁨,감사하는,첫 글,"둘', *ORDINARY, "", '슬픔,우울한,셋,넷"'],
        ["document,label", '"첫 글,1', '셋",0', *OWN],
        ["document,label", '"첫 글,1', *OWN[:2], '셋",1', *OWN[2:]],
        ["document,label", '"첫 글,가', *(line[:-1] + "나" for line in OWN), '셋",다'],
        ["id,document,label", '7,"첫 글,1', '8,셋",0', *NUMBERED],
        ["label,document", '가,"첫 글', '가,셋"', *(f"가,{n}" for n in range(9))],
        ["id,document", '9,"첫 글', '10,셋"', "11,넷"],
        ["날,document", '2024-09-30,"첫 글', "2024-10-01,둘", '2024-10-02,셋"', "2024-10-04,넷"],
        ["document;label", '"첫, 글;1', '셋";0', *(line.replace(",", ";") for line in OWN)],
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_quote_that_swallows_rows(tmp_path: Path, lines: list[str], end: str) -> None:
    path = write(tmp_path / "a.csv", *lines, end=end)
    sheet = open_sheet(path, {"사람문장1", "document", "label"})
    with pytest.raises(InputError) as caught:
        list(sheet.rows)
    assert str(caught.value) == (
        f"{path}, row 2: the lines of a field in quotes look like rows; remove the "
        "quote before it, or write the field on one line"
    )


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_lists_in_a_file_that_a_program_has_quoted(tmp_path: Path, quoting: int) -> None:
    """Nothing is known about a quote there but that it is doubled in a text."""
    food = "오늘 먹은 것\n아침,밥,국\n점심,김밥,라면\n저녁,치킨,맥주"
    rows = [["id", "label", "document"], ["1", "기쁨", "밥, 국"], ["2", "기쁨", "첫째\n둘째"]]
    rows += [
        ["3", "기쁨", food],
        ["7", "슬픔", "오늘 내 마음은\n4,기쁨,슬픔\n5,기쁨,슬픔"],
        ["8", "기쁨", "끝, 끝"],
    ]
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=quoting).writerows(rows)
    assert [cells for _, cells in open_sheet(path, {"document"}).rows] == rows[1:]


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("document,label", "안녕, 나는\n오늘, 학교에, 갔다\n끝"),
        ("document,label", "나는, 1\n너는"),
        ("document,label", "아,네\n그래요"),
        ("document,label", "나는,\n너를,\n그래,\n정말,\n정말,\n사랑해"),
        ("document,label", "음,,\n글쎄,,\n네,,,\n응,,\n그래,,\n1"),
        ("document,label", "1\n0\n\n1"),
        ("document,", "아,네\n가,나\n다\n라,마\n바,사\n아,자"),
        ("document", "1\n0\n1"),
        ("id,document,label", "안녕, 나는\n오늘은, 너와, 함께\n또, 갔다"),
        ("id,document,label", "값은 3,000원\n아,네"),
        ("label,document", "오늘은\n1, 2"),
        ("id,document", "저녁을 먹었다\n3,000원 냈다"),
        (HEADER_LINE, "네, 그래요\n음, 아니, 그게"),
        ("id,document", "친구랑 밥을 먹었다\n40,000원을 냈다"),
    ],
)
def test_line_breaks_in_a_text_are_no_rows(tmp_path: Path, header: str, text: str) -> None:
    names = header.split(",")
    place = names.index("document" if "document" in names else "사람문장1")
    rows = [[str(n), *["1"] * (len(names) - 1)] for n in range(9)]
    rows[4][place] = text
    path = write_csv(tmp_path / "a.csv", [names, *rows])
    read = [cells for _, cells in open_sheet(path, {names[place]}).rows]
    assert read == rows


@pytest.mark.parametrize("encoding", ["utf-8", "cp949"])
def test_a_bad_byte_is_named_by_its_row(folder: Path, encoding: str) -> None:
    content = "\n".join([HEADER_LINE, LINES[3], *LINES * 5]).encode(encoding)
    place = content.rindex("길을".encode(encoding))
    path = folder / "Training.csv"
    path.write_bytes(content[:place] + b"\xff" + content[place:])
    assert refusal(folder).startswith(
        f"{path}, row 21: neither utf-8 nor cp949 (byte {place + 1:,} of the file); "
    )


@pytest.mark.parametrize("kind", ["utf-16-le", "utf-16-be", "utf-32", "a workbook", "gzip"])
def test_a_file_that_is_no_such_text_at_all(folder: Path, kind: str) -> None:
    path = write(folder / "Training.csv", HEADER_LINE, *LINES)
    if kind == "a workbook":
        write_workbook(path.with_suffix(".xlsx"), rows_for(HEADER)).rename(path)
    elif kind == "gzip":
        path.write_bytes(gzip.compress(path.read_bytes()))
    else:
        write(path, HEADER_LINE, *LINES, encoding=kind)
    assert refusal(folder) == (
        f"{path}: neither utf-8 nor cp949, but another encoding or no text; save it as CSV UTF-8"
    )


def test_a_bad_byte_in_utf_8_that_is_cp949_by_chance(tmp_path: Path) -> None:
    """A column that somebody named, for prediction; each of its characters is two of cp949."""
    content = "문장\n기뻐\n친구\n".encode() + b"\xb0\xa1\n"
    content.decode("cp949")
    path = tmp_path / "diary.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match="row 4: neither utf-8 nor cp949"):
        open_sheet(path, {"문장"})


def test_second_header_in_a_file_to_predict(tmp_path: Path) -> None:
    name = "사람문장1"
    sheet = open_sheet(write(tmp_path / "diary.csv", name, "기뻐", name, "슬퍼"), {name})
    with pytest.raises(InputError, match="row 3: a second header"):
        _ = [cell_text(sheet, number, 0, cells) for number, cells in sheet.rows]


def test_header_below_titles_is_noted(
    folder: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    path = write(folder / "Training.csv", *DIALECTS["titles above"])
    ingest(folder)
    line = f"note: {path}: the header is row 3; what stands above it is not read\n"
    assert capsys.readouterr().err.startswith(line)
    write(folder / "Training.csv", *DIALECTS["sep= comma"])
    ingest(folder)
    assert "the header is" not in capsys.readouterr().err


def test_only_the_first_turn(folder: Path) -> None:
    path = write(folder / "Training.csv", "사람문장1,감정_대분류", "가,기쁨")
    assert refusal(folder) == (
        f"{path}: no column 사람문장2; found 사람문장1, 감정_대분류; "
        "write turns: 1 into params.yaml to do without"
    )
    ingest(folder, turns=1)
    assert dialogues(folder) == [("가", "기쁨", None)]


# What looks the same is the same


def test_labels_that_look_the_same_are_one_class(folder: Path) -> None:
    spellings = ["기쁨", "기쁨\u200b", "\u2060기쁨", "\ufeff기쁨 ", "기\u00ad쁨", "기쁨\u3164"]
    spellings += [unicodedata.normalize("NFD", "기쁨")]
    spellings += ["기쁨\ufe0f", "기\U000e0100쁨\ufe0e", "\u1100\u200b\u1175쁨"]
    fine = ["눈물이 나는", "눈물이  나는", "눈물이\n나는", "눈물이\u00a0나는"]
    cells = [
        [None] * 5 + [label, fine[n % 4], f"{n}번", None, None, None, None, None]
        for n, label in enumerate(spellings)
    ]
    write_workbook(folder / "Training.xlsx", cells)
    report = ingest(folder, target="fine")
    assert report["splits"]["Training"]["labels"] == {"기쁨": len(spellings)}
    assert {row["fine"] for row in table(folder)} == {"눈물이 나는"}


@pytest.mark.parametrize("target", ["major", "fine"])
def test_a_class_of_one_row_is_noted(
    folder: Path,
    target: str,
    capsys: pytest.CaptureFixture,
) -> None:
    lines = [
        LINES[0],
        LINES[1],
        LINES[1],
        "상처,고립됀,가,나" if target == "fine" else "상쳐,,가,나",
    ]
    path = write(folder / "Training.csv", HEADER_LINE, LINES[0], *lines)
    ingest(folder, target=target, max_dropped=0.5)
    assert capsys.readouterr().err == (
        f"note: {path}: 1 of 3 classes have one row only (row 6); is the label misspelled?\n"
    )


@pytest.mark.parametrize(
    "copy",
    [
        unicodedata.normalize("NFD", "길을 잃었어"),
        "길을  잃었어",
        "길을\u00a0잃었어",
        "길을\n잃었어",
        "길\u200b을 잃었\u2060어",
        "\ufeff길을 잃었어\u00ad",
        "길을\ufe0f 잃었어",
    ],
)
def test_copies_are_counted_by_what_is_read(folder: Path, copy: str) -> None:
    write_workbook(folder / "Training.xlsx", rows_for(HEADER, [("기쁨", "", copy, "", "")] * 2))
    report = ingest(folder)
    assert report["validation_texts_also_in_training"] == 1
    assert report["splits"]["Training"]["repeated_texts"] == 1
    assert dialogues(folder)[0][0] == unicodedata.normalize("NFC", copy)  # and nothing else


@pytest.mark.parametrize(
    "empty",
    ["None", "NULL", "null", "N/A", "n/a", "NA", "<NA>", "NaN", "nan", "-", "–", "\\N", "(null)"]
    + ["\u3164", "\u115f\u1160", "\uffa0 ", "\u2800\u2800", "\u200b", "\u2060\ufe0f", "N/A\u200b"],
)
def test_a_cell_that_says_nothing_is_an_empty_turn(folder: Path, empty: str) -> None:
    cells = [("기쁨", empty, "가", empty, "나"), ("기쁨", "", empty, "다", "라")]
    write_workbook(folder / "Training.xlsx", rows_for(HEADER, cells))
    ingest(folder, turns=3)
    assert dialogues(folder) == [("가 나", "기쁨", None), ("다 라", "기쁨", None)]


ERRORS = ["#N/A", "#NAME?", "#VALUE!", "#REF!", "#DIV/0!", "#NUM!", "#NULL!", "#SPILL!", "#ERROR!"]


@pytest.mark.parametrize("error", ERRORS)
def test_a_spreadsheet_s_error_is_an_empty_cell(folder: Path, error: str) -> None:
    write(folder / "Training.csv", HEADER_LINE, f"기쁨,,가,{error}", f"{error},,나,")
    part = ingest(folder, max_dropped=0.5)["splits"]["Training"]
    assert dialogues(folder) == [("가", "기쁨", None)]
    assert part["dropped"] == {f"label {error!r}": 1}


@pytest.mark.parametrize("face", ["--", "ㅡㅡ", "-_-", "…", "없음", "ㄴㄴ", "🙂", "N"])
def test_a_cell_that_says_little_is_text(folder: Path, face: str) -> None:
    write_workbook(folder / "Training.xlsx", rows_for(HEADER, [("기쁨", "", "가", face, "")]))
    ingest(folder)
    assert dialogues(folder) == [(f"가 {face}", "기쁨", None)]


# JSON, told by what it holds


@pytest.mark.parametrize("start", ["", "\ufeff", "\n \n"])
def test_json_lines_named_json(folder: Path, start: str) -> None:
    path = write_jsonl(folder / "Training.json", json_items())
    path.write_text(start + path.read_text(encoding="utf-8"), encoding="utf-8")
    ingest(folder)
    assert dialogues(folder) == DIALOGUES


def test_a_bad_byte_in_json_is_named_by_its_line(folder: Path) -> None:
    path = write_jsonl(folder / "Training.jsonl", json_items())
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace("길".encode(), b"\xff")
    path.write_bytes(b"".join(lines))
    assert refusal(folder) == f"{path}, line 3: not utf-8; AI Hub's JSON is"


@pytest.mark.parametrize("write", [write_json, write_jsonl])
def test_a_key_that_is_there_twice(folder: Path, write: Callable) -> None:
    """json would take the last one, and a turn or an emotion would be lost."""
    for key in ("type", "HS01"):
        path = write(folder / "Training.json", json_items())
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(f'"{key}"', f'"{key}": "E11", "{key}"', 3), encoding="utf-8")
        assert refusal(folder).startswith(f"{path}, item 1: not valid JSON (a key is there twice)")


@pytest.mark.parametrize("code", ["None", "null", "-", "E61\u200b"])
def test_code_that_says_nothing(folder: Path, code: str) -> None:
    items = json_items()
    items[0]["profile"]["emotion"]["type"] = code
    write_jsonl(folder / "Training.jsonl", items)
    part = ingest(folder, max_dropped=0.5)["splits"]["Training"]
    assert part["dropped"] == ({} if code[0] == "E" else {f"label {code!r}": 1})
