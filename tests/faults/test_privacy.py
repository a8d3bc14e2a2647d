"""Diary text stays where it belongs: in no log, no message, not in MLflow, in no reader's reach."""

import csv
import io
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import stages.ingest
import stages.labels
from pretrain.vocabulary import train_vocabulary
from storyflower.__main__ import main as predict
from storyflower.common.errors import InputError, exit_with_line
from storyflower.ingest import ingest
from tests.support import HEADER, TINY_PARAMS, dialogue_rows, set_params
from tests.support import write_workbook as write_book

CANARY = "남몰래적은일기"
FORMS = [
    CANARY.encode(),
    json.dumps(CANARY)[1:-1].encode(),  # \ud569
    repr(CANARY.encode())[2:-1].encode(),  # \xed\x95
    CANARY.encode("utf-16-le"),
    CANARY.encode("cp949"),
]


def shows(content: bytes) -> bool:
    return any(form in content for form in FORMS)


def with_canary(rows: list[list]) -> list[list]:
    place = HEADER.index("사람문장1")
    return [[*row[:place], f"{CANARY} {row[place]}", *row[place + 1 :]] for row in rows]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Every way to fail that the text can reach


def write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


LABELS = ["감정_대분류", "감정_소분류", "사람문장1", "사람문장2"]
GOOD = ["기쁨", "감사하는", f"{CANARY} 합격했어", CANARY]
ITEM = {"profile": {"emotion": {"type": "E61"}}, "talk": {"content": {"HS01": CANARY}}}


def item(**changes: object) -> dict:
    return json.loads(json.dumps(ITEM)) | changes


BROKEN: dict[str, object] = {
    "no header.csv": [GOOD, GOOD],
    "header of text.csv": [[CANARY, *LABELS[1:]], GOOD],
    "two columns.csv": [[*LABELS, LABELS[2]], [*GOOD, CANARY]],
    "no rows.csv": [LABELS, [CANARY], [CANARY]],
    "many labels.csv": [LABELS, *([f"{CANARY}{n}", *GOOD[1:]] for n in range(200))],
    "quote.csv": ",".join(LABELS) + f'\n기쁨,,"{CANARY}"{CANARY},가\n',
    "open quote.csv": ",".join(LABELS) + f'\n기쁨,,"{CANARY},가\n',
    "encoding.csv": CANARY.encode("utf-16"),
    "not json.json": f'[{{"a": "{CANARY}" "b"}}]',
    "cut.json": json.dumps([ITEM, ITEM], ensure_ascii=False)[:-9],
    "no list.json": json.dumps(CANARY),
    "code.json": [item(profile={"emotion": {"type": CANARY}})],
    "code list.json": [item(profile={"emotion": {"type": [CANARY]}})],
    "keys.json": [{CANARY: CANARY}],
    "turn.json": [item(talk={"content": {"HS01": [CANARY]}})],
    "surrogate.json": [item(talk={"content": {"HS01": f"{CANARY}\ud800"}})],
    "line.jsonl": f"{CANARY}\n",
    "html.xlsx": f"<html><table><td>{CANARY}",
    "text.xlsx": CANARY,
}


def spoil(folder: Path, name: str, content: object) -> None:
    path = folder / f"Training{Path(name).suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".csv":
        write_csv(path, content)
    else:
        path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Callable[[Callable], str]:
    """A stage that must end in one line, which is returned; the text is not in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/mine").mkdir(parents=True)
    write_csv(tmp_path / "data/mine/Validation.csv", [LABELS, GOOD])
    set_params(tmp_path, **TINY_PARAMS, corpus="mine")

    def fails(main: Callable) -> str:
        with pytest.raises(SystemExit) as stop:
            exit_with_line(main)
        out, err = capfd.readouterr()
        assert stop.value.code == 1
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert not shows((out + err).encode()), err
        return err

    return fails


@pytest.mark.parametrize("name", BROKEN)
def test_ingest_refuses_without_repeating_the_text(fails, tmp_path: Path, name: str) -> None:
    spoil(tmp_path / "data/mine", name, BROKEN[name])
    assert "data/mine/Training" in fails(stages.ingest.main)


@pytest.mark.parametrize("value", [True, 20240501])
def test_ingest_of_a_cell_that_is_no_text(fails, tmp_path: Path, value: object) -> None:
    rows = with_canary(dialogue_rows(6, seed=1))
    rows[3][HEADER.index("사람문장2")] = value
    write_book(tmp_path / "data/mine/Training.xlsx", rows)
    assert "row 5: 사람문장2" in fails(stages.ingest.main)


def test_labels_refuses_without_repeating_the_label(fails, tmp_path: Path) -> None:
    """Somebody put the text in the label's column, of Validation alone."""
    angry = ["분노", *GOOD[1:]]
    write_csv(tmp_path / "data/mine/Training.csv", [LABELS, GOOD, GOOD, angry, angry])
    write_csv(tmp_path / "data/mine/Validation.csv", [LABELS, *[[CANARY, *GOOD[1:]]] * 2])
    exit_with_line(stages.ingest.main)
    assert "Validation.csv, row 2: its label" in fails(stages.labels.main)


@pytest.mark.parametrize("text", [CANARY, f"{CANARY}\u2581[MASK]<s>\x00", CANARY * 5000])
def test_a_vocabulary_of_too_little_text(fails, tmp_path: Path, capfd, text: str) -> None:
    try:
        train_vocabulary([text], tmp_path / "spiece.model", pieces=120, seed=1)
    except InputError as error:
        assert not shows(str(error).encode())
    said = capfd.readouterr()
    assert not shows((said.out + said.err).encode())


@pytest.mark.parametrize(
    ("words", "content"),
    [
        ([f"{CANARY} 합격했어", "--model", "none"], None),
        ([f"{CANARY} 합격했어", "--input", "in.csv", "--output", "out.csv"], None),
        (["--input", "in.csv", "--output", "out.csv"], [GOOD, GOOD]),
        (["--input", "in.csv", "--output", "out.csv"], [LABELS, [*GOOD[:2], f'"{CANARY}']]),
        (["--input", "in.csv", "--output", "no/out.csv"], [LABELS, GOOD]),
        (["--input", "in.csv", "--output", "out.xlsx"], [LABELS, [*GOOD[:2], CANARY * 9000]]),
        ([], CANARY.encode("cp949")),
    ],
)
def test_predict_fails_without_repeating_the_text(
    fails, tmp_path: Path, classifier: Path, monkeypatch, words: list[str], content: object
) -> None:
    stdin = content if isinstance(content, bytes) else b""
    if isinstance(content, list):
        write_csv(tmp_path / "in.csv", content)
        if content[-1][-1].startswith('"'):
            with (tmp_path / "in.csv").open("a", encoding="utf-8") as file:
                file.write(f'"{CANARY}"{CANARY}\n')
    (tmp_path / "no").write_text("a file, no folder", encoding="utf-8")
    if "--model" not in words:
        words = [*words, "--model", str(classifier)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    monkeypatch.setattr(sys, "argv", ["storyflower", "predict", *words])
    fails(predict)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "words",
    [
        [CANARY],
        ["predict", f"--json={CANARY}"],
        ["predict", f"--jsn={CANARY}"],
        ["predict", "합격했어", f"--a{CANARY}=", "-j"],
        ["predict", "-j", CANARY],
        ["predict", CANARY, "--model"],
        ["card", CANARY, CANARY, CANARY],
        ["sync", CANARY],
        [f"--version={CANARY}"],
        ["predict", f"--help={CANARY}"],
    ],
)
def test_arguments_that_make_no_sense_are_not_repeated(
    capfd: pytest.CaptureFixture, words: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        exit_with_line(lambda: predict(words))
    out, err = capfd.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith("usage: ") and not shows(err.encode())


def test_a_command_writes_for_its_owner_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o022)
    try:
        exit_with_line(lambda: Path("new").write_text("글", encoding="utf-8"))
        assert mode(tmp_path / "new") == 0o600
    finally:
        os.umask(before)


def test_the_table_is_the_owners_alone_whoever_calls(fails, tmp_path: Path) -> None:
    """Without a command around it, whose umask would see to it."""
    write_csv(tmp_path / "data/mine/Training.csv", [LABELS, GOOD, GOOD])
    table, before = tmp_path / "dialogues.parquet", os.umask(0o022)
    try:
        options = {"turns": 2, "target": "major", "max_dropped": 0.0}
        ingest.ingest(tmp_path / "data/mine", table, tmp_path / "ingest.json", **options)
    finally:
        os.umask(before)
    assert (mode(table), mode(tmp_path / "ingest.json")) == (0o600, 0o644)
