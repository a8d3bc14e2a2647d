"""Every layout and every damage that a corpus folder may have, through ingest_module.ingest."""

import csv
import datetime
import errno
import json
import os
import sys
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storyflower.common.errors import InputError
from storyflower.ingest import ingest as ingest_module
from storyflower.sheets.sheet import says_nothing
from tests.support import HEADER, ROOT, run, set_params, write_workbook

PERSON = ["연령", "성별", "상황키워드", "신체질환"]
EMOTION = ["감정_대분류", "감정_소분류"]


def turn_columns(reply: str, turns: int, replies: int) -> list[str]:
    names = []
    for turn in range(1, turns + 1):
        names.append(f"사람문장{turn}")
        names += [f"{reply}{turn}"] if turn <= replies else []
    return names


LAYOUTS = {
    "2021": ["번호", *PERSON, *EMOTION, *turn_columns("시스템응답", 4, 4)],
    "2021, replies to turn 3": ["번호", *PERSON, *EMOTION, *turn_columns("시스템응답", 4, 3)],
    "2022-11-15": [None, *PERSON, *EMOTION, *turn_columns("시스템문장", 3, 3)],
    "value column": ["번호", *PERSON, *EMOTION, *turn_columns("시스템응답", 3, 3), "value"],
    "전체선톡": ["번호", *PERSON[:3], "전체선톡", *EMOTION, *turn_columns("시스템응답", 4, 4)],
    "unnamed index of pandas": ["Unnamed: 0", *PERSON, *EMOTION, *turn_columns("시스템문장", 3, 3)],
    "another order": [*turn_columns("시스템문장", 3, 3)[::-1], *EMOTION[::-1], *PERSON],
    "spaces, line breaks": [
        " 번호",
        *PERSON,
        "감정_대분류 ",
        "\n감정_소분류",
        "사람문장1\n",
        "사람문장2",
    ],
}
# What stands in the cells (감정_대분류, 감정_소분류, 사람문장1..3), and what must come out of it.
CELLS = [
    ("기쁨 ", "감사하는", "합격했어. ", " 꿈만 같아", "다 네 덕분이야"),
    ("상처", "고립된", "나만 빼고 약속을 잡았더라", None, None),
    (" 당황", "고립된 ", "길을 잃었어", "", "여기가 어디지"),
    ("상처\t", "가난한, 불우한", "도시락을 못 쌌어", '"괜찮아" 하고\n웃었어', None),
]
DIALOGUES = [  # (text of two turns, label, fine)
    ("합격했어. 꿈만 같아", "기쁨", "감사하는"),
    ("나만 빼고 약속을 잡았더라", "상처", "고립된"),
    ("길을 잃었어", "당황", "고립된"),
    ('도시락을 못 쌌어 "괜찮아" 하고\n웃었어', "상처", "가난한, 불우한"),
]
CODES = ["E61", "E43", "E51", "E45"]  # of the rows above
BAD_ROW = 3  # where the second dialogue stands in a sheet


def rows_for(layout: list, cells: list[tuple] = CELLS) -> list[list]:
    """The cells above under a layout's columns; the other columns hold what must not be read."""
    used = [*EMOTION, "사람문장1", "사람문장2", "사람문장3"]
    rows = []
    for number, values in enumerate(cells, start=1):
        by_name = dict(zip(used, values, strict=True)) | {"번호": number, None: number}
        by_name["사람문장4"] = "네 번째는 읽지 않아"
        names = [name and unicodedata.normalize("NFC", name).strip() for name in layout]
        rows.append([by_name.get(name, f"{name}의 값") for name in names])
    return rows


def write_csv(path: Path, rows: list[list], encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([["" if cell is None else cell for cell in r] for r in rows])
    return path


def label_json(code: object = "E61", **content: object) -> dict:
    """One dialogue as AI Hub's label JSON writes it."""
    emotion = {"type": code, "emotion-id": f"S06_D02_{code}", "situation": ["S06", "D02"]}
    persona = {"persona-id": "Pro_05349", "human": ["A02", "G02"], "computer": ["C01"]}
    turns = {f"{who}0{n}": "" for n in (1, 2, 3) for who in ("HS", "SS")}
    talk = {"id": {"profile-id": "Pro_05349", "talk-id": "Pro_05349_00053"}}
    talk["content"] = turns | {"HS01": "합격했어", "SS01": "축하해요."} | content
    return {"profile": {"persona-id": "Pro_05349", "persona": persona, "emotion": emotion}} | {
        "talk": talk
    }


def json_items(codes: list[str] = CODES, cells: list[tuple] = CELLS) -> list[dict]:
    turns = ("HS01", "HS02", "HS03")
    return [
        label_json(code, **{turn: text or "" for turn, text in zip(turns, row[2:], strict=True)})
        for code, row in zip(codes, cells, strict=True)
    ]


def write_json(path: Path, items: object) -> Path:
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


def write_jsonl(path: Path, items: list) -> Path:
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def good_sheet(path: Path) -> Path:
    """The rows above, and the path in a cell that is not read: no two of these files are equal."""
    rows = rows_for(HEADER)
    rows[0][HEADER.index("연령")] = str(path)
    return write_workbook(path, rows)


def ingest(folder: Path, **options: object) -> dict:
    outputs = (folder.parent / "dialogues.parquet", folder.parent / "ingest.json")
    settings = {"turns": 2, "target": "major", "max_dropped": 0.0, **options}
    report = ingest_module.ingest(folder, *outputs, **settings)
    assert json.loads(outputs[1].read_text(encoding="utf-8")) == report
    return report


def table(folder: Path, split: str = "Training") -> list[dict]:
    rows = pq.read_table(folder.parent / "dialogues.parquet").to_pylist()
    assert not rows or list(rows[0]) == ["split", "row", "text", "label", "fine", "file"]
    return [row for row in rows if row["split"] == split]


def dialogues(folder: Path, split: str = "Training") -> list[tuple]:
    return [(row["text"], row["label"], row["fine"]) for row in table(folder, split)]


def refusal(folder: Path, **options: object) -> str:
    """The one line with which a folder is refused, and nothing written."""
    with pytest.raises(InputError) as caught:
        ingest(folder, **options)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert not [path for path in folder.parent.iterdir() if path.is_file()]
    return message


def patch(path: Path, member: str, change: Callable[[bytes], bytes]) -> Path:
    """Rewrite the members of a workbook whose names contain `member`."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            changed = change(content) if member in name else content
            assert member not in name or changed != content, "nothing to patch"
            archive.writestr(name, changed)
    return path


# What is read


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("suffix", [".xlsx", ".csv"])
def test_columns_are_found_by_name(folder: Path, layout: list, suffix: str) -> None:
    rows = rows_for(layout)
    if suffix == ".xlsx":
        write_workbook(folder / "corpus_Training.xlsx", rows, layout)
    else:
        write_csv(folder / "corpus_Training.csv", [layout, *rows])
    report = ingest(folder)
    assert dialogues(folder) == DIALOGUES
    assert [row["row"] for row in table(folder)] == [2, 3, 4, 5]
    assert report["splits"]["Training"]["read"] == len(DIALOGUES)


def test_header_in_decomposed_hangul(folder: Path) -> None:
    layout = [name and unicodedata.normalize("NFD", name) for name in HEADER]
    write_workbook(folder / "Training.xlsx", rows_for(layout), layout)
    ingest(folder)
    assert dialogues(folder) == DIALOGUES


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_csv_encodings(folder: Path, encoding: str) -> None:
    header = HEADER[5:]  # a byte order mark would stick to 감정_대분류
    write_csv(folder / "Training.csv", [header, *rows_for(header)], encoding)
    ingest(folder)
    assert dialogues(folder) == DIALOGUES


def test_more_rows_than_are_held_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good_sheet(folder / "Training.xlsx")
    monkeypatch.setattr(ingest_module, "ROW_GROUP", 3)
    ingest(folder)
    assert dialogues(folder) == dialogues(folder, "Validation") == DIALOGUES
    assert pq.ParquetFile(folder.parent / "dialogues.parquet").num_row_groups == 4  # 3 + 1, twice


@pytest.mark.parametrize("write", [write_json, write_jsonl])
def test_json_gives_the_table_of_the_workbook(folder: Path, write: Callable) -> None:
    write(folder / f"Training{'.json' if write is write_json else '.jsonl'}", json_items())
    ingest(folder, target="fine")
    assert dialogues(folder) == DIALOGUES == dialogues(folder, "Validation")
    assert [row["row"] for row in table(folder)] == [1, 2, 3, 4]


def test_json_with_bom(folder: Path) -> None:
    text = json.dumps(json_items(), ensure_ascii=False)
    (folder / "Training.json").write_text(text, encoding="utf-8-sig")
    ingest(folder)
    assert dialogues(folder) == DIALOGUES


# E10..E69 in order, with the names that the workbook has for them.
EMOTIONS = {
    "분노": (
        "분노 툴툴대는 좌절한 짜증내는 방어적인 악의적인 안달하는 구역질_나는 노여워하는 성가신"
    ),
    "슬픔": ("슬픔 실망한 비통한 후회되는 우울한 마비된 염세적인 눈물이_나는 낙담한 환멸을_느끼는"),
    "불안": (
        "불안 두려운 스트레스_받는 취약한 혼란스러운 "
        "당혹스러운 회의적인 걱정스러운 조심스러운 초조한"
    ),
    "상처": (
        "상처 질투하는 배신당한 고립된 충격_받은 가난한,_불우한 희생된 억울한 괴로워하는 버려진"
    ),
    "당황": (
        "당황 고립된 남의_시선을_의식하는 외로운 열등감 "
        "죄책감의 부끄러운 혐오스러운 한심한 혼란스러운"
    ),
    "기쁨": ("기쁨 감사하는 신뢰하는 편안한 만족스러운 흥분 느긋 안도 신이_난 자신하는"),
}


def test_every_emotion_code(folder: Path) -> None:
    write_json(folder / "Training.json", [label_json(f"E{code}") for code in range(10, 70)])
    ingest(folder)
    assert [(row["label"], row["fine"]) for row in table(folder)] == [
        (major, fine.replace("_", " ")) for major in EMOTIONS for fine in EMOTIONS[major].split()
    ]


def test_code_list_names_in_a_workbook(folder: Path) -> None:
    """The code list writes E51 and E59 with "(당황한)"; a workbook may, too."""
    cells = [
        ("당황", "고립된(당황한)", "가", None, None),
        ("당황", "혼란스러운 (당황한)", "나", "", ""),
    ]
    write_workbook(folder / "Training.xlsx", rows_for(HEADER, cells))
    ingest(folder)
    assert [row["fine"] for row in table(folder)] == ["고립된", "혼란스러운"]


@pytest.mark.parametrize(
    ("turns", "text"),
    [(1, "합격했어."), (2, "합격했어. 꿈만 같아"), (3, "합격했어. 꿈만 같아 다 네 덕분이야")],
)
def test_turns(folder: Path, turns: int, text: str) -> None:
    good_sheet(folder / "Training.xlsx")
    assert ingest(folder, turns=turns)["turns"] == turns
    assert table(folder)[0]["text"] == text
    assert dialogues(folder)[2][0] == ("길을 잃었어" if turns < 3 else "길을 잃었어 여기가 어디지")


@pytest.mark.parametrize("empty", [None, "", " ", "nan", "NaN", float("nan")])
def test_nan_is_no_text(folder: Path, empty: object) -> None:
    content = {"HS02": empty, "HS03": "끝"}
    write_json(folder / "Training.json", [label_json(**content)])
    ingest(folder, turns=3)
    assert dialogues(folder) == [("합격했어 끝", "기쁨", "감사하는")]
    write_json(folder / "Training.json", [label_json(), label_json(HS01=empty)])
    report = ingest(folder, max_dropped=0.5)
    assert report["splits"]["Training"]["dropped"] == {"no text": 1}


VISIBLE = st.text(st.characters(codec="cp949", exclude_categories=["C", "Z"]), min_size=1)
# Not "-" and not the filler of Hangul, which are no text, nor a text that NFC would change
SENTENCE = (
    st.lists(VISIBLE, min_size=1, max_size=4)
    .map(lambda words: unicodedata.normalize("NFC", " ".join(words)))
    .filter(lambda text: not says_nothing(text))
    # NFC turns some of cp949's ideographs into others that it lacks, which the csv cannot be
    # written with.
    .filter(lambda text: text.encode("cp949", "ignore").decode("cp949") == text)
)


@settings(
    deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(SENTENCE, SENTENCE | st.none()), min_size=1, max_size=5))
def test_all_formats_agree_on_any_text(folder: Path, turns: list[tuple]) -> None:
    cells = [("기쁨", "감사하는", first, second, None) for first, second in turns]
    rows = rows_for(HEADER, cells)
    # A leading "=" would be a formula to openpyxl, which a text cell is not.
    writers = {
        "xlsx": lambda path: write_text_workbook(path, rows),
        "csv": lambda path: write_csv(path, [HEADER, *rows], "cp949"),
        "json": lambda path: write_json(path, json_items(["E61"] * len(cells), cells)),
        "jsonl": lambda path: write_jsonl(path, json_items(["E61"] * len(cells), cells)),
    }
    expected = [
        (first if second is None else f"{first} {second}", "기쁨", "감사하는")
        for first, second in turns
    ]
    for suffix, write in writers.items():
        path = write(folder / f"Training.{suffix}")
        ingest(folder)
        assert dialogues(folder) == expected, suffix
        path.unlink()


def write_text_workbook(path: Path, rows: list[list]) -> Path:
    book = openpyxl.Workbook()
    for row, values in enumerate([HEADER, *rows], start=1):
        for column, value in enumerate(values, start=1):
            cell = book.active.cell(row, column, value)
            if isinstance(value, str):
                cell.data_type = "s"
    book.save(path)
    return path


# Row numbers, sheets


def test_rows_are_numbered_as_the_sheet_numbers_them(folder: Path) -> None:
    book = openpyxl.Workbook()
    rows = dict(zip([3, 5, 6, 9], [HEADER, *rows_for(HEADER)], strict=False))
    for number, values in rows.items():
        for column, value in enumerate(values, start=2):
            book.active.cell(number, column, value)
    book.save(folder / "Training.xlsx")
    report = ingest(folder)
    assert [row["row"] for row in table(folder)] == [5, 6, 9]
    assert dialogues(folder) == DIALOGUES[:3]
    assert report["splits"]["Training"]["read"] == 3
    book.active.cell(6, 2 + HEADER.index("감정_대분류"), 7)
    book.save(folder / "Training.xlsx")
    (folder.parent / "dialogues.parquet").unlink()
    (folder.parent / "ingest.json").unlink()
    assert "row 6: 감정_대분류 holds a number" in refusal(folder)


def test_csv_rows_are_numbered_as_a_sheet_would(folder: Path) -> None:
    rows = rows_for(HEADER)
    write_csv(folder / "Training.csv", [[], HEADER, rows[3], [], rows[1]])  # row 3 has a line break
    ingest(folder)
    assert [row["row"] for row in table(folder)] == [3, 5]


@pytest.mark.parametrize("chart", [False, True], ids=["hidden", "chart"])
def test_first_visible_worksheet_is_read(folder: Path, chart: bool) -> None:
    path = good_sheet(folder / "Training.xlsx")
    book = openpyxl.load_workbook(path)
    if chart:
        book.create_chartsheet("그림", 0)
    else:
        for place, state in enumerate(["hidden", "veryHidden"]):
            hidden = book.create_sheet(f"옛것{place}", place)
            hidden.append(["아무", "것"])
            hidden.sheet_state = state
    book.create_sheet("뒤").append(["아무", "것"])
    book.active = 1 if chart else 2
    book.save(path)
    report = ingest(folder)
    assert dialogues(folder) == DIALOGUES
    assert report["splits"]["Training"]["files"][0]["source"] == f"{path}, sheet 'Sheet1'"


def test_strict_open_xml(folder: Path) -> None:
    """Excel's "Strict Open XML Spreadsheet" has other namespaces."""
    path = good_sheet(folder / "Training.xlsx")
    old, new = b"http://schemas.openxmlformats.org/", b"http://purl.oclc.org/ooxml/"
    for member in (
        "xl/workbook.xml",
        "worksheets/sheet1.xml",
        "sharedStrings",
        "workbook.xml.rels",
    ):
        patch(
            path,
            member,
            lambda xml: xml.replace(
                old + b"officeDocument/2006/", new + b"officeDocument/"
            ).replace(old + b"spreadsheetml/2006/", new + b"spreadsheetml/"),
        )
    ingest(folder)
    assert dialogues(folder) == DIALOGUES


def test_formula_beside_the_table_does_not_matter(folder: Path) -> None:
    path = good_sheet(folder / "Training.xlsx")
    book = openpyxl.load_workbook(path)
    book.active.cell(2, 1, "=ROW()-1")
    book.save(path)
    ingest(folder)
    assert dialogues(folder) == DIALOGUES


# Which file is which


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    "name",
    [
        "감성대화말뭉치(최종데이터)_{}.xlsx",
        "감성대화말뭉치(최종데이터)_{}..xlsx",
        "감성대화말뭉치_{}_221115_add.XLSX",
    ],
)
def test_files_are_found_by_name(tmp_path: Path, name: str, form: str) -> None:
    folder = tmp_path / "data" / "aihub"
    for split in ("Training", "Validation"):
        good_sheet(folder / unicodedata.normalize(form, name.format(split)))
    (folder / "._감성대화_Training.xlsx").write_bytes(b"macOS")
    (folder / "~$감성대화_Training.xlsx").write_bytes(b"Excel")
    (folder / "README_Training.txt").write_text("아무 말", encoding="utf-8")
    ingest(folder)
    assert dialogues(folder) == dialogues(folder, "Validation") == DIALOGUES


def test_names_in_small_letters(folder: Path) -> None:
    good_sheet(folder / "corpus_training.xlsx")
    ingest(folder)
    assert dialogues(folder) == DIALOGUES


def test_missing_folder(tmp_path: Path) -> None:
    message = refusal(tmp_path / "aihub")
    assert str(tmp_path / "aihub") in message
    assert "no such folder" in message


def test_missing_file(folder: Path) -> None:
    message = refusal(folder)
    assert "no Training file" in message
    assert "감성대화_Validation.xlsx" in message  # what is there instead


def test_old_xls_is_named_as_found(folder: Path) -> None:
    (folder / "감성대화_Training.xls").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
    message = refusal(folder)
    assert "no Training file" in message
    assert "감성대화_Training.xls" in message


def test_one_file_named_for_both(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "aihub"
    path = good_sheet(folder / "Training_Validation.xlsx")
    assert refusal(folder).startswith(f"{path}: names both splits")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_name_out_of_a_windows_zip(folder: Path) -> None:
    path = folder / "감성대화_Training.csv".encode("cp949").decode("utf-8", "surrogateescape")
    write_csv(path, [HEADER, *rows_for(HEADER)])
    message = refusal(folder)
    assert "not utf-8; rename the file" in message
    message.encode()  # can be printed


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["감성대화말뭉치(최종데이터)_{}.xlsx", "대화.xlsx"])
def test_folders_as_ai_hub_packs_them(tmp_path: Path, name: str, form: str) -> None:
    folder = tmp_path / "data" / "aihub"
    for number, split in enumerate(("Training", "Validation"), start=1):
        outer = folder / "감성대화 Training+Validation"  # says nothing, the inner one does
        below = outer / unicodedata.normalize(form, f"{number}.{split}") / "원천데이터"
        good_sheet(below / name.format(split))
        for hidden in (folder / "__MACOSX" / split, folder / ".ipynb_checkpoints"):
            hidden.mkdir(parents=True, exist_ok=True)
            (hidden / f"{split}.xlsx").write_bytes(b"not read")
    (folder / "위로").symlink_to(folder)
    ingest(folder)
    assert dialogues(folder) == dialogues(folder, "Validation") == DIALOGUES


def test_folder_that_cannot_be_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "Training").mkdir()
    scan = os.scandir

    def refusing(path: object) -> object:  # root may open any folder
        if str(path).endswith("Training"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert refusal(folder) == f"{folder / 'Training'}: cannot be read (Permission denied)"


def test_workbook_and_label_json_of_one_split(folder: Path) -> None:
    """AI Hub's two folders have the same dialogues."""
    cells = [(*CELLS[n % 4][:2], f"{n}번째 글", None, None) for n in range(60)]
    book = write_workbook(folder / "Training/원천데이터/감성대화.xlsx", rows_for(HEADER, cells))
    (folder / "Training/라벨링데이터").mkdir()
    labels = folder / "Training/라벨링데이터/감성대화.json"
    write_json(labels, json_items(CODES * 15, cells))
    assert refusal(folder) == (
        f"{book}, sheet 'Sheet1': 60 of its 60 texts also stand in the files before it "
        f"(60 in {labels}); their labels are the same; keep one file"
    )


# Files that are not what they say


HTML = '<html><meta charset="utf-8"><table><tr><td>감정_대분류</td></tr></table></html>'.encode()
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("Training.xlsx", "번호,감정_대분류\n".encode(), "not a workbook"),
        ("Training.xlsx", HTML, "an HTML page"),
        ("Training.xlsx", PNG, "not a workbook"),
        ("Training.xlsx", b"", "empty"),
        ("Training.xlsx", OLE, "encrypted workbook or an old .xls"),
        ("Training.xlsx", b"PK\x05\x06" + bytes(18), "not a workbook"),
        ("Training.csv", b"", "empty"),
        ("Training.csv", b"\n\n,,\n", "empty"),
        ("Training.csv", b"\xff\xfe" + "감정".encode("utf-16-le"), "no column 사람문장1"),
        ("Training.csv", b"\xff\xfe\x00\xd8,\x00", "broken UTF-16"),
        ("Training.csv", "감정".encode("utf-32"), "neither utf-8 nor cp949"),
        ("Training.csv", b'"\n', "broken csv"),
        ("Training.csv", "감정_대분류,".encode() + b"\xff\xff", "neither utf-8 nor cp949"),
        ("Training.json", b"", "holds no dialogue"),
        ("Training.json", "[{}]".encode("utf-16"), "not utf-8"),
        ("Training.jsonl", '{"감정": 1}'.encode("cp949"), "not utf-8"),
        ("Training.json", b'{"profile": {}}', "expected profile.emotion.type"),
        ("Training.json", b'{\n"profile": {}}', "expected a list of dialogues, or one a line"),
        ("Training.json", b"\xc2\xa0[{}]", "not valid JSON"),
        ("Training.json", b"[" * 100_000, "not valid JSON"),
        ("Training.json", b"[" + b"9" * 5000 + b"]", "not valid JSON"),
        ("Training.json", b"[]", "holds no dialogue"),
        ("Training.jsonl", b"\n\n", "holds no dialogue"),
    ],
)
def test_not_what_the_name_says(folder: Path, name: str, content: bytes, complaint: str) -> None:
    (folder / name).write_bytes(content)
    message = refusal(folder)
    assert message.startswith(str(folder / name))
    assert complaint in message


def test_a_zip_that_is_no_workbook(folder: Path) -> None:
    with zipfile.ZipFile(folder / "Training.xlsx", "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    assert refusal(folder).startswith(f"{folder / 'Training.xlsx'}: damaged or truncated")


@pytest.mark.parametrize("share", [0.0005, 0.005, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999])
def test_truncated_workbook(folder: Path, share: float) -> None:
    path = good_sheet(folder / "Training.xlsx")
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(share * len(content)))])
    assert refusal(folder).startswith(f"{path}: ")


@pytest.mark.parametrize("member", ["sheet1.xml", "xl/workbook.xml", "workbook.xml.rels"])
@pytest.mark.parametrize("damage", ["bits", "cut", "gone"])
def test_damaged_workbook(folder: Path, member: str, damage: str) -> None:
    path = good_sheet(folder / "Training.xlsx")
    if damage == "bits":  # in the compressed stream
        with zipfile.ZipFile(path) as archive:
            (info,) = [entry for entry in archive.infolist() if entry.filename.endswith(member)]
        content = bytearray(path.read_bytes())
        start = info.header_offset + 30 + len(info.filename)
        content[start : start + info.compress_size] = b"\xfa" * info.compress_size
        path.write_bytes(content)
    elif damage == "cut":
        patch(path, member, lambda xml: xml[: len(xml) // 2])
    else:
        patch(path, member, lambda xml: b"")
    assert refusal(folder).startswith(f"{path}: damaged or truncated workbook")


def test_no_visible_sheet(folder: Path) -> None:
    path = good_sheet(folder / "Training.xlsx")
    patch(path, "xl/workbook.xml", lambda xml: xml.replace(b'"visible"', b'"hidden"'))
    assert refusal(folder).startswith(f"{path}: no visible worksheet")


def test_broken_quoting(folder: Path) -> None:
    path = folder / "Training.csv"
    path.write_text(
        '감정_대분류,사람문장1,사람문장2\n기쁨,가,나\n기쁨,"가"나,다\n', encoding="utf-8"
    )
    assert refusal(folder).startswith(f"{path}, row 3: broken csv")
    path.write_text('감정_대분류,사람문장1,사람문장2\n기쁨,가,나\n기쁨,"가,나\n', encoding="utf-8")
    assert refusal(folder).startswith(f"{path}, row 3: broken csv")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.97])
def test_json_cut_off(folder: Path, suffix: str, share: float) -> None:
    write = write_json if suffix == ".json" else write_jsonl
    path = write(folder / f"Training{suffix}", json_items())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    message = refusal(folder)
    assert message.startswith(str(path))
    assert "cut off?" in message or "not utf-8" in message


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ({}, "expected profile.emotion.type"),
        ("E18", "expected profile.emotion.type"),
        (None, "expected profile.emotion.type"),
        (label_json("E70"), "unknown emotion code in profile.emotion.type, not E10-E69"),
        (label_json("분노"), "unknown emotion code in profile.emotion.type"),
        (label_json(18), "profile.emotion.type is no text, expected E10-E69"),
        (label_json("\ud800"), "unknown emotion code"),
        (label_json(HS01=3), "사람문장1 holds a number, date or truth value; write it as text"),
        (label_json(HS2="가"), "talk.content has 'HS2'; AI Hub's keys are HS01 to HS04"),
        (label_json(HS05="가"), "talk.content has 'HS05'; AI Hub's keys are HS01 to HS04"),
        (label_json(**{"HS-02": "가"}), "talk.content has 'HS-02'; AI Hub's keys are HS01 to HS04"),
        (
            label_json(**{"HS02\n": "가"}),
            "talk.content has 'HS02\\n'; AI Hub's keys are HS01 to HS",
        ),
        (label_json(**{" hs_02": "가"}), "talk.content has ' hs_02'; AI Hub's keys are HS01 to HS"),
        *(
            (label_json(**{key: "가"}), f"talk.content has {key!r}; AI Hub's keys are HS01 to HS04")
            for key in (
                "사람문장2",
                "ＨＳ０２",
                "HSO2",
                "human02",
                "turn②",
                "HS02_",
                "02",
                "HS02\u200b",
            )
        ),
        (label_json(HS02=["가"]), "사람문장2 holds a list or object; write it as text"),
        (label_json(HS02="반쪽 \ud83d 글자"), "half of a surrogate pair"),
    ],
)
def test_bad_json_item(folder: Path, item: object, complaint: str) -> None:
    path = write_json(folder / "Training.json", [label_json(), item])
    message = refusal(folder)
    assert message.startswith(f"{path}, item 2: ")
    assert complaint in message
    message.encode()  # can be printed


# Sheets that hold something else


def test_empty_sheet(folder: Path) -> None:
    openpyxl.Workbook().save(folder / "Training.xlsx")
    assert refusal(folder) == f"{folder / 'Training.xlsx'}, sheet 'Sheet': the sheet is empty"


@pytest.mark.parametrize("blank", [0, 3])
def test_header_only(folder: Path, blank: int) -> None:
    path = write_workbook(folder / "Training.xlsx", [[None] * 13] * blank)
    assert refusal(folder).startswith(f"{path}, sheet 'Sheet1': holds no dialogue")


@pytest.mark.parametrize("name", ["감정_대분류", "사람문장1", "사람문장2"])
def test_missing_column(folder: Path, name: str) -> None:
    header = ["다른\n이름" if column == name else column for column in HEADER]
    path = write_workbook(folder / "Training.xlsx", rows_for(header), header)
    message = refusal(folder)
    assert message.startswith(f"{path}, sheet 'Sheet1': no column {name}; found 연령, 성별")
    column = "FHJ"[["감정_대분류", "사람문장1", "사람문장2"].index(name)]
    assert f", other names in columns {column}; " in message
    assert "다른" not in message  # whatever it is, it is not shown
    param = "label_column" if name == "감정_대분류" else "text_columns"
    assert message.endswith(
        "; write turns: 1 into params.yaml to do without"
        if name == "사람문장2"
        else f"; set {param} in params.yaml"
    )


def test_duplicate_column(folder: Path) -> None:
    header = [*HEADER, "사람문장1"]
    path = write_workbook(folder / "Training.xlsx", rows_for(header), header)
    assert refusal(folder).startswith(f"{path}, sheet 'Sheet1': 2 columns named 사람문장1")


def test_fine_emotion_is_needed_only_as_a_target(folder: Path) -> None:
    header = [name for name in HEADER if name != "감정_소분류"]
    path = write_workbook(folder / "Training.xlsx", rows_for(header), header)
    assert refusal(folder, target="fine").startswith(
        f"{path}, sheet 'Sheet1': no column 감정_소분류"
    )
    ingest(folder)
    assert dialogues(folder) == [(text, label, None) for text, label, _ in DIALOGUES]


@pytest.mark.parametrize("column", ["감정_대분류", "감정_소분류", "사람문장1", "사람문장2"])
@pytest.mark.parametrize(
    "value",
    [3, 0.5, True, datetime.date(2024, 5, 1), datetime.datetime(2024, 5, 1, 6, 30)],
)
def test_cell_that_is_no_text(folder: Path, column: str, value: object) -> None:
    rows = rows_for(HEADER)
    rows[BAD_ROW - 2][HEADER.index(column)] = value
    path = write_workbook(folder / "Training.xlsx", rows)
    message = refusal(folder, max_dropped=1.0)
    assert message == (
        f"{path}, sheet 'Sheet1', row {BAD_ROW}: {column} holds a number, date or truth value; "
        "write it as text"
    )


@pytest.mark.parametrize(
    ("cell", "cached", "read"),
    [
        ('="기쁨"', "기쁨", "기쁨"),  # what the sheet showed when it was saved
        ('="기쁨"', None, ""),  # written by a program that computes nothing
        ("#N/A", None, ""),
    ],
)
def test_formulas_and_errors(folder: Path, cell: str, cached: str | None, read: str) -> None:
    rows = rows_for(HEADER)
    rows[BAD_ROW - 2][HEADER.index("감정_대분류")] = cell
    path = write_workbook(folder / "Training.xlsx", rows)
    if cached:
        value = f"</f><v>{cached}</v>".encode()
        patch(path, "sheet1.xml", lambda xml: xml.replace(b"</f><v />", value))
    report = ingest(folder, max_dropped=1.0)["splits"]["Training"]
    if read:
        assert report["kept"] == report["read"]
        assert dialogues(folder)[BAD_ROW - 2][1] == read
    else:
        assert report["dropped"] == {"no 감정_대분류": 1}


@pytest.mark.parametrize("suffix", [".xlsx", ".json"])
def test_all_cells_that_are_no_text_are_named_at_once(folder: Path, suffix: str) -> None:
    path = folder / f"Training{suffix}"
    word = "row" if suffix == ".xlsx" else "item"
    if suffix == ".xlsx":
        rows = rows_for(HEADER, CELLS * 4)
        for row in rows[:8]:
            row[HEADER.index("사람문장1")] = row[HEADER.index("사람문장2")] = 7
        write_workbook(path, rows)
    else:
        write_json(path, [label_json(HS01=7, HS02=7)] * 8 + json_items())
    message = refusal(folder)
    first = 2 if word == "row" else 1
    cells = [f"{word} {first + n // 2} 사람문장{n % 2 + 1}" for n in range(10)]
    assert f": 16 cells are no text ({'; '.join(cells)}; and 6 more); the first holds" in message


# Rows that cannot be used


@pytest.mark.parametrize(
    ("change", "target", "reason"),
    [
        ({"감정_대분류": None}, "major", "no 감정_대분류"),
        ({"감정_대분류": "  "}, "major", "no 감정_대분류"),
        ({"감정_대분류": "\u200b\u3164"}, "major", "no 감정_대분류"),
        ({"감정_대분류": "nan"}, "major", "label 'nan'"),
        ({"감정_대분류": "None "}, "major", "label 'None'"),
        ({"감정_대분류": "<NA>"}, "major", "label '<NA>'"),
        ({"감정_소분류": "n/a"}, "fine", "fine label 'n/a'"),
        ({"감정_소분류": None}, "fine", "no 감정_소분류"),
        ({"사람문장1": None, "사람문장2": None}, "major", "no text"),
        ({"사람문장1": " \n", "사람문장2": "\u200b\ufeff"}, "major", "no text"),
        ({"사람문장1": "NULL", "사람문장2": "\u3164"}, "major", "no text"),
    ],
)
def test_unusable_row(folder: Path, change: dict, target: str, reason: str) -> None:
    rows = rows_for(HEADER)
    for column, value in change.items():
        rows[BAD_ROW - 2][HEADER.index(column)] = value
    path = write_workbook(folder / "Training.xlsx", rows)
    message = refusal(folder, target=target, max_dropped=0.24)
    assert message.startswith(
        f"{path}, sheet 'Sheet1': 1 of 4 rows unusable (1 with {reason}; first row {BAD_ROW}: "
        f"{reason}), above max_dropped 0.24"
    )
    report = ingest(folder, target=target, max_dropped=0.25)
    part = report["splits"]["Training"]
    assert (part["read"], part["kept"], part["dropped"]) == (4, 3, {reason: 1})
    assert dialogues(folder) == [DIALOGUES[0], *DIALOGUES[2:]]
    assert [row["row"] for row in table(folder)] == [2, 4, 5]


def test_missing_fine_emotion_is_null_when_it_is_no_target(folder: Path) -> None:
    write_workbook(folder / "Training.xlsx", rows_for(HEADER, [("기쁨", None, "가", "나", None)]))
    ingest(folder)
    assert dialogues(folder) == [("가 나", "기쁨", None)]


def test_no_usable_row(folder: Path) -> None:
    path = write_workbook(folder / "Training.xlsx", rows_for(HEADER, [("기쁨", "", "", "", "")]))
    assert refusal(folder, max_dropped=1.0) == f"{path}, sheet 'Sheet1': no usable row"


def test_report(folder: Path) -> None:
    empty = [("기쁨", "", None, "", ""), ("", "", "가", "", ""), ("", "", "나", "", "")]
    path = write_csv(
        folder / "Training.csv", [HEADER, *rows_for(HEADER, [*CELLS, *empty, CELLS[0]])]
    )
    validation = f"{folder / '감성대화_Validation.xlsx'}, sheet 'Sheet1'"
    labels = {"상처": 2, "기쁨": 1, "당황": 1}
    held_out = {"read": 4, "kept": 4, "dropped": {}, "labels": labels}
    dropped = {"no text": 1, "no 감정_대분류": 2}
    training = {"read": 8, "kept": 5, "dropped": dropped, "labels": labels | {"기쁨": 2}}
    assert ingest(folder, max_dropped=0.5) == {
        "corpus": "aihub",
        "turns": 2,
        "text_columns": ["사람문장1", "사람문장2"],
        "label_column": "감정_대분류",
        "splits": {
            "Training": {
                "files": [{"source": str(path), **training, "texts_also_in_earlier_files": 0}],
                **training,
                "repeated_texts": 1,
            },
            "Validation": {
                "files": [{"source": validation, **held_out, "texts_also_in_earlier_files": 0}],
                **held_out,
                "repeated_texts": 0,
            },
        },
        "validation_texts_also_in_training": 4,
    }


@pytest.mark.parametrize("broken", ["Training", "Validation"])
def test_old_outputs_survive_a_failed_ingest(folder: Path, broken: str) -> None:
    good_sheet(folder / "감성대화_Training.xlsx")
    ingest(folder)
    before = {path: path.read_bytes() for path in folder.parent.iterdir() if path.is_file()}
    assert len(before) == 2
    write_workbook(folder / f"감성대화_{broken}.xlsx", rows_for(HEADER, [("기쁨", "", 3, "", "")]))
    with pytest.raises(InputError):
        ingest(folder)
    assert before == {path: path.read_bytes() for path in folder.parent.iterdir() if path.is_file()}


# The stage: exit code 1, one line, no traceback


def run_stage(root: Path) -> str:
    set_params(root, corpus="aihub")
    done = run(root, sys.executable, "-m", "stages.ingest", PYTHONPATH=str(ROOT))
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are utf-8")
@pytest.mark.parametrize(("corpus", "name"), [("aihub", "일기"), ("말뭉치", "a")])
def test_a_locale_that_is_not_utf_8(tmp_path: Path, corpus: str, name: str) -> None:
    path = tmp_path / "data" / corpus / f"{name}_Training.csv"
    path.parent.mkdir(parents=True)
    write_csv(path, [HEADER, *rows_for(HEADER)])
    set_params(tmp_path, corpus=corpus)
    stage = [sys.executable, "-X", "utf8=0", "-m", "stages.ingest"]
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = run(tmp_path, *stage, **locale)
    where = path if corpus == "aihub" else path.parent
    remedy = "here file names are read as ascii; type 'export PYTHONUTF8=1' first"
    said = f"error: {where.relative_to(tmp_path)}: {remedy}\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_stage_says_it_in_one_line(folder: Path) -> None:
    root = folder.parents[1]
    header = ["감정" if name == "감정_대분류" else name for name in HEADER]
    write_workbook(folder / "Training.xlsx", rows_for(header), header)
    message = run_stage(root)
    assert message.startswith(
        "error: data/aihub/Training.xlsx, sheet 'Sheet1': no column 감정_대분류; found 연령, "
    )
    assert not (root / "reports" / "ingest.json").exists()
