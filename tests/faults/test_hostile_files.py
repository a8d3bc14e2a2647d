"""Files that somebody broke, through the ingest stage: an end in time, one line, nothing half."""

import csv
import io
import json
import os
import subprocess
import sys
import threading
import time
import unicodedata
from collections import Counter
from pathlib import Path
from xml.parsers import expat

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storyflower.common.errors import InputError
from storyflower.ingest import ingest as ingest_module
from storyflower.sheets import read_csv, sheet
from tests.faults.hostile_files import CANARY, KINDS, csv_text, hostile_files
from tests.support import ROOT, set_params

SECONDS, PATIENCE = 10, 60  # of a quick processor; of the clock, for a busy machine
MEMORY = 2**30  # bytes
NEVER_READ = ("XML entity bombs", "password protection", "an xls or HTML file named xlsx")

# Runs the stage in one folder after the other; a line on stdout says how each ended.
CHILD = """
import contextlib, io, json, os, resource, sys, time
from pathlib import Path

def peak():
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

def used():
    # of the processor, and of the child that opens workbooks
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime

import stages.ingest
from storyflower.common.errors import exit_with_line
# Keeps a failed test from taking the machine down; the peak below is what is judged.
with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
for folder in sys.argv[1:]:
    os.chdir(folder)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    out, err, code = io.StringIO(), io.StringIO(), 0
    start = used()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exit_with_line(stages.ingest.main)
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            code = f"traceback: {type(error).__name__}: {error}"[:500]
    seconds = used() - start
    said = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
    print(json.dumps({**said, "seconds": seconds, "peak": peak()}), flush=True)
"""


def ingest_each(folders: list[Path]) -> list[dict]:
    """How the stage ended in each folder; a child that dies or hangs is replaced by the next."""
    ends: list[dict] = []
    while len(ends) < len(folders):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, *map(str, folders[len(ends) :])],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with child:
            while True:
                # Not a timer of the file's own: the clock begins again with each line.
                timer = threading.Timer(PATIENCE, child.kill)
                timer.start()
                line = child.stdout.readline()
                timer.cancel()
                if not line:
                    break
                ends.append(json.loads(line))
        if len(ends) < len(folders):
            ends.append({"code": f"died: {child.returncode}"})
    return ends


def seconds_here() -> float:
    """SECONDS, or what a slower processor needs for them: a quick one reads this in 0.1 s."""
    parser = expat.ParserCreate()
    parser.StartElementHandler = parser.EndElementHandler = lambda *_: None
    start = time.process_time()
    parser.Parse(b"<a>" + b"<b/>" * 500_000 + b"</a>", True)
    return SECONDS * max(1, (time.process_time() - start) / 0.1)


def complaints(folder: Path, end: dict, seconds: float) -> list[str]:
    """What was not as promised; `seconds` of the processor are the most that a file may take."""
    outputs = [folder / "data/interim/dialogues.parquet", folder / "reports/ingest.json"]
    said = end.get("out", "") + end.get("err", "")
    wrong = []
    if end["code"] == 0:
        notes = end["err"].splitlines()
        if any(not line.startswith("note: data/c/") for line in notes) or any(
            path.read_bytes() == b"old" for path in outputs
        ):
            wrong.append("success without outputs, or with a complaint")
    elif end["code"] == 1:
        if not end["err"].startswith("error: data/c/") or end["err"].count("\n") != 1:
            wrong.append("not one line")
        if any(path.read_bytes() != b"old" for path in outputs):
            wrong.append("an output was touched")
    else:
        wrong.append("neither success nor one line")
    if end["code"] == 0 and any(kind in folder.name for kind in NEVER_READ):
        wrong.append("was read")
    if list(folder.rglob("*.part")):
        wrong.append("something half-written is left")
    if CANARY in said or "\x1b" in said:
        wrong.append("the text was repeated")
    if end.get("seconds", 0) > seconds or end.get("peak", 0) > MEMORY:
        wrong.append("took too much")
    return wrong


@pytest.mark.slow
def test_every_hostile_file_ends_in_time_with_success_or_one_line(tmp_path: Path) -> None:
    set_params(tmp_path, corpus="c", max_dropped=0.5)
    kinds, folders = Counter(), []
    for number, (kind, suffix, content) in enumerate(hostile_files()):
        kinds[kind] += 1
        folder = tmp_path / f"{number:03} {kind}{suffix}"
        for name in ("data/c", "data/interim", "reports"):
            (folder / name).mkdir(parents=True)
        os.link(tmp_path / "params.yaml", folder / "params.yaml")
        (folder / f"data/c/a_Training{suffix}").write_bytes(content)
        (folder / "data/c/a_Validation.csv").write_bytes(csv_text())
        for name in ("data/interim/dialogues.parquet", "reports/ingest.json"):
            (folder / name).write_bytes(b"old")
        folders.append(folder)
    assert set(kinds) == KINDS and kinds.total() >= 300, kinds
    limit = seconds_here()
    ends = ingest_each(folders)
    slowest = max(ends, key=lambda end: end.get("seconds", 0))
    largest = max(ends, key=lambda end: end.get("peak", 0))
    print(f"{len(ends)} files, {sum(end['code'] == 0 for end in ends)} read, the others refused;")
    print(f"at most {slowest['seconds']:.1f} s and {largest['peak'] >> 20} MiB")
    failed = {
        folder.name: (wrong, end)
        for folder, end in zip(folders, ends, strict=True)
        if (wrong := complaints(folder, end, limit))
    }
    assert not failed, "\n".join(f"{name}: {what}" for name, what in failed.items())
    assert 50 < sum(end["code"] == 0 for end in ends) < 0.7 * len(ends)


# Any text at all, through ingest_module.ingest

SETTINGS = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HEADER_LINE = "감정_대분류,사람문장1,사람문장2\n기쁨,가,나\n"
ODD = st.text(st.sampled_from('",\n\r\t\0 =가나[]{}:0e-\\u\u202e\ufeff\x85'), max_size=40)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | ODD,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["profile", "emotion", "type", "talk", "content", "HS01", "x"]), inner
        )
    ),
    max_leaves=12,
)


def ingest(root: Path, name: str, content: bytes) -> list[dict] | str:
    """The rows of Training, or the one line of refusal; nothing is left beside the outputs."""
    folder = root / "data"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / name).write_bytes(content)
    (folder / "Validation.csv").write_text(HEADER_LINE, encoding="utf-8")
    outputs = (root / "out/dialogues.parquet", root / "out/ingest.json")
    for path in outputs:
        path.unlink(missing_ok=True)
    try:
        ingest_module.ingest(folder, *outputs, turns=2, target="major", max_dropped=0.9)
    except InputError as error:
        assert str(error).splitlines() == [str(error)] and str(error).startswith(str(folder))
        assert not outputs[0].exists() or not list(outputs[0].parent.iterdir())
        return str(error)
    assert set(outputs[0].parent.iterdir()) == set(outputs)
    rows = pq.read_table(outputs[0]).to_pylist()
    return [row for row in rows if row["split"] == "Training"]


@SETTINGS
@given(st.text(max_size=200) | ODD, st.sampled_from(["utf-8", "utf-8-sig", "cp949", "utf-16"]))
def test_any_csv_text(tmp_path: Path, text: str, encoding: str) -> None:
    ingest(tmp_path, "Training.csv", text.encode(encoding, "ignore"))
    ingest(tmp_path, "Training.csv", (HEADER_LINE + text).encode(encoding, "ignore"))


CELL = st.text(st.characters(codec="utf-8"), max_size=20) | ODD


@SETTINGS
@given(st.lists(st.tuples(CELL, CELL), max_size=8))
def test_any_cells_of_a_csv_come_out_as_they_went_in(tmp_path: Path, turns: list[tuple]) -> None:
    turns = [("처음", "둘"), *turns, ("끝", "")]  # so that few enough rows are empty
    buffer = io.StringIO()
    csv.writer(buffer).writerows(
        [["감정_대분류", "사람문장1", "사람문장2"], *(("기쁨", *pair) for pair in turns)]
    )
    found = ingest(tmp_path, "Training.csv", buffer.getvalue().encode())
    said = [
        [part.strip() for part in pair if not sheet.says_nothing(part.strip())] for pair in turns
    ]
    expected = [unicodedata.normalize("NFC", " ".join(parts)) for parts in said if parts]
    assert [row["text"] for row in found] == expected


@SETTINGS
@given(st.text(max_size=100) | ODD, JSON_VALUES, st.integers(1, 12))
def test_any_json_text_and_value(tmp_path: Path, text: str, value: object, piece: int) -> None:
    """`piece`: the list is read piece by piece, and an item may straddle any number of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_csv, "MAX_RECORD", 4 * piece)
        ingest(tmp_path, "Training.json", text.encode("utf-8", "ignore"))
    for suffix in (".json", ".jsonl"):
        good = [{"profile": {"emotion": {"type": "E61"}}, "talk": {"content": {"HS01": "가"}}}]
        whole = [*good, value] if suffix == ".json" else value
        content = json.dumps(whole).encode()
        found = ingest(tmp_path, f"Training{suffix}", content)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(read_csv, "MAX_RECORD", max(len(content), 64))  # a quarter at a time
            assert ingest(tmp_path, f"Training{suffix}", content) == found
    assert len(ingest(tmp_path, "Training.json", json.dumps(good * 9).encode())) == 9
