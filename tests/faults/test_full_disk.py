"""A disk that takes no more, at every output of every stage: one line, and the old files stay."""

import ctypes
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from storyflower.common.errors import InputError
from storyflower.common.files import replacing
from storyflower.encoder import sources
from tests.encoder.hub import running_hub
from tests.support import ROOT, dialogue_rows, run, set_params, write_workbook

FULL = "no space left on device; make room and run it again"
TOO_LARGE = "file too large; raise the limit that ulimit -f shows, or use another file system"
READ_ONLY = "read-only file system; use a folder that can be written to"
DENIED = "permission denied; change its owner or its mode, or use another folder"

WORKBOOK = "data/sample/표본_Training.xlsx"

# The outputs of each stage in the order in which they are written.
OUTPUTS = {
    "ingest": ["data/interim/dialogues.parquet", "reports/ingest.json"],
    "labels": ["data/interim/labels.json"],
    "encoder": ["models/encoder"],
    "tokenize": ["data/interim/tokens", "reports/tokens.json"],
    "train": ["reports/history.csv", "models/classifier", "reports/run.json"],
    "evaluate": [
        "reports/metrics.json",
        "reports/confusion.csv",
        "reports/confusion.png",
        "reports/learning_curves.png",
        "reports/reliability.png",
        "reports/coverage.csv",
        "reports/coverage.png",
        "data/interim/predictions.parquet",
    ],
}

# In a mount namespace of its own and a new repository: runs every stage; then, for each output,
# mounts a small file system over the output's folder, leaves too little room for it, but enough for
# those before it, and runs its stage again.
CHILD = """
import contextlib, importlib, io, json, os, subprocess, sys
from pathlib import Path
from storyflower.tracking import mlflow
from storyflower.common.errors import exit_with_line

PAGE = 4096
mlflow.push = lambda *_: None  # MLflow has tests of its own

def files(path):
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]

def content():
    return {str(p): p.read_bytes() for f in folders for p in files(f) if p.name != "filling"}

def pages(output):
    return sum(-(-p.stat().st_size // PAGE) for p in files(output))

def attempt(stage):
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            exit_with_line(importlib.import_module(f"stages.{stage}").main)
        except SystemExit as end:
            return end.code, err.getvalue()
    return 0, err.getvalue()

@contextlib.contextmanager
def mounted(folder):
    held = {path: path.read_bytes() for path in files(folder)}
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True)
    for path, data in held.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    yield
    subprocess.run(["umount", "-l", str(folder)], check=True)

def fill(folder, left):
    with (folder / "filling").open("wb") as filling:
        os.posix_fallocate(filling.fileno(), 0, (os.statvfs(folder).f_bavail - left) * PAGE)
    assert os.statvfs(folder).f_bavail == left

outputs_of = json.loads(sys.argv[1])
folders = [Path(name) for name in ("data/interim", "models", "reports")]
results = [[stage, "no fault", *attempt(stage), []] for stage in outputs_of]
for stage, outputs in outputs_of.items():
    for number, output in enumerate(map(Path, outputs)):
        folder = next(f for f in folders if output.is_relative_to(f))
        with mounted(folder):
            left = pages(output) - 1
            for earlier in map(Path, outputs[:number]):
                if earlier.is_relative_to(folder):
                    left += pages(earlier)
                    if earlier.name == "history.csv":  # replaced at once, the others at the end
                        earlier.unlink()
            fill(folder, left)
            before = content()
            code, said = attempt(stage)
            after = content()
        changed = {name for name in before.keys() | after if before.get(name) != after.get(name)}
        results.append([stage, str(output), code, said, sorted(changed)])

reports, outbox = Path("reports"), Path(".storyflower")
with mounted(reports):
    subprocess.run(["mount", "-o", "remount,ro", "reports"], check=True)
    results.append(["ingest", "read-only", *attempt("ingest"), []])
with mounted(outbox):
    fill(outbox, 0)
    results.append(["train", "outbox", *attempt("train"), []])
print(json.dumps(results))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount")
def test_a_full_disk_at_every_output(make_repository: Callable[..., Path]) -> None:
    root = make_repository()
    words = ("unshare", "-m", sys.executable, "-c", CHILD, json.dumps(OUTPUTS))
    done = run(root, *words)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    *full, read_only, outbox = results[len(OUTPUTS) :]
    assert [row[2:4] for row in results[: len(OUTPUTS)]] == [[0, ""]] * len(OUTPUTS)
    assert [row[:2] for row in full] == [[s, o] for s, outs in OUTPUTS.items() for o in outs]
    for stage, output, code, said, changed in full:
        assert (code, said) == (1, f"error: cannot write {output}: {FULL}\n"), (stage, output)
        # history.csv grows with each epoch, so the epochs that were trained stand in it.
        assert set(changed) <= {"reports/history.csv"} & set(OUTPUTS[stage]), (stage, output)
    assert read_only[2:4] == [1, f"error: cannot write reports/ingest.json: {READ_ONLY}\n"]
    code, said = outbox[2:4]
    assert code == 1 and said.count("\n") == 1
    assert said.startswith("error: cannot write ") and said.endswith(f"record.json: {FULL}\n")


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Every write behind `size` bytes fails, whoever does it: Python, Arrow or Rust."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_text(path: Path) -> None:
    path.write_text("a" * 5000, encoding="utf-8")


def write_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": list(range(5000))}), path)


def write_weights(path: Path) -> None:
    import safetensors.numpy

    safetensors.numpy.save_file({"x": np.zeros(5000)}, path)


def write_folder(path: Path) -> None:
    path.mkdir()
    (path / "first").write_bytes(b"new")
    write_weights(path / "second")


def write_copy(path: Path) -> None:
    shutil.copyfile(ROOT / "dvc.yaml", path)


@pytest.mark.parametrize(
    "write", [write_text, write_parquet, write_weights, write_folder, write_copy]
)
def test_what_is_written_together_appears_together_or_not_at_all(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    (folder / "b").mkdir(parents=True)
    for name in ("a.json", "b/old", "c.csv"):
        (folder / name).write_bytes(b"old")
    targets = (folder / "a.json", folder / "b", folder / "c.csv")

    def work() -> None:
        with replacing() as beside:
            beside(targets[0]).write_bytes(b"new")
            write(beside(targets[1]))
            beside(targets[2]).write_bytes(b"new")

    before = tree(folder)
    with no_file_larger_than(1000), pytest.raises(InputError) as error:
        work()
    assert str(error.value) == f"cannot write {targets[1]}: {TOO_LARGE}"
    assert tree(folder) == before
    if write is not write_folder:
        shutil.rmtree(targets[1])
        targets[1].write_bytes(b"old")
    work()
    after = tree(folder)
    assert {name for name in after if before.get(name) == after[name]} == set()
    assert {name.split("/")[0] for name in after} == {"a.json", "b", "c.csv"}


def test_other_errors_stay_what_they_are_and_leave_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_bytes(b"old")
    for error in (ValueError("5"), FileNotFoundError(errno.ENOENT, "no such file", "b")):
        with pytest.raises(type(error)) as raised, replacing() as beside:
            beside(target).write_bytes(b"half")
            raise error
        assert raised.value is error
        assert tree(tmp_path) == {"a.json": b"old"}


def test_an_input_that_may_not_be_read_is_not_called_an_output(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "encoder/vocab.txt")
    with pytest.raises(InputError) as raised, replacing() as beside:
        beside(tmp_path / "model").mkdir()
        raise error
    assert str(raised.value) == f"encoder/vocab.txt: {DENIED}"
    assert tree(tmp_path) == {}


def test_a_limit_on_the_size_of_files_stops_a_stage_with_one_line(corpus: Path) -> None:
    before = tree(corpus)
    done = stage(corpus, "ingest", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)))
    assert done.returncode == 1
    assert done.stderr == f"error: cannot write data/interim/dialogues.parquet: {TOO_LARGE}\n"
    assert tree(corpus) == before


@pytest.mark.parametrize(
    ("mode", "place", "said"),
    [
        (0o555, "reports", f"cannot write reports/ingest.json: {DENIED}"),
        (0o555, ".", f"data/interim: {DENIED}"),  # which the stage would make
        (0o000, WORKBOOK, f"{WORKBOOK}: cannot be read (Permission denied)"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root may do all")
def test_a_missing_permission_stops_a_stage_with_one_line(
    mode: int, place: str, said: str, corpus: Path
) -> None:
    if place == ".":
        shutil.rmtree(corpus / "data/interim")
        place = "data"
    usual = (corpus / place).stat().st_mode
    before = tree(corpus)
    (corpus / place).chmod(mode)
    done = stage(corpus, "ingest", obey_modes)
    (corpus / place).chmod(usual)
    assert done.returncode == 1
    assert done.stderr == f"error: {said}\n"
    assert tree(corpus) == before


def obey_modes() -> None:
    """Root may write where the mode forbids it; a child without this capability may not."""
    if sys.platform == "linux":
        drop_from_bounding_set, dac_override, dac_read_search = 24, 1, 2
        for capability in (dac_override, dac_read_search):
            ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder in which ingest can run, with outputs of an earlier run."""
    for name in ("stages", "storyflower"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_workbook(tmp_path / "data/sample/표본_Training.xlsx", dialogue_rows(12, seed=1))
    write_workbook(tmp_path / "data/sample/표본_Validation.xlsx", dialogue_rows(6, seed=2))
    set_params(tmp_path)
    for name in OUTPUTS["ingest"]:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"old")
    return tmp_path


def stage(root: Path, name: str, before: Callable[[], object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"stages.{name}"],
        cwd=root,
        preexec_fn=before,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; make room, or set"),
        (RuntimeError("Data error: (os error 28)"), f"{{cache}}: {FULL}"),
        (PermissionError(errno.EACCES, "Permission denied", "/cache/x"), f"/cache/x: {DENIED}"),
        (OSError(errno.EROFS, "Read-only file system", "/cache/x"), f"/cache/x: {READ_ONLY}"),
    ],
)
def test_a_hub_cache_that_cannot_be_written(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def download(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(InputError) as raised:
        sources.HubFolder("lab/tiny", None).find("config.json")
    assert said.format(cache=huggingface_hub.constants.HF_HUB_CACHE) in str(raised.value)


def test_a_download_that_the_disk_does_not_take_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    with running_hub(monkeypatch, cache) as hub:
        hub.publish("lab/tiny", {"weights.bin": bytes(5000)})
        folder = sources.HubFolder("lab/tiny", None)
        with no_file_larger_than(1000), pytest.raises(InputError) as error:
            folder.find("weights.bin")
        assert str(error.value) == f"{cache}: {TOO_LARGE}"
        assert not list(cache.rglob("*.incomplete")) + list(cache.rglob("weights.bin"))
        assert len([path for path in hub.paths() if path.startswith("store/")]) == 1
        assert folder.find("weights.bin").read_bytes() == bytes(5000)


def test_a_zip_that_the_disk_does_not_take(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("kobert/config.json", bytes(5000))
    with no_file_larger_than(1000), pytest.raises(InputError) as error:
        sources.unzip(tmp_path / "a.zip", tmp_path / "out")
    assert str(error.value) == f"{tmp_path / 'a.zip'}: cannot be unpacked: {TOO_LARGE}"
