"""Several experiments, or several `dvc repro`, at once in one repository."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.faults.concurrency import at_once
from tests.support import command, run


@pytest.mark.slow
def test_experiments_at_once_leave_one_whole_run_each(make_repository: Callable[..., Path]) -> None:
    """Two here, in a repository without a database; tests/faults/concurrency.py does eight."""
    assert at_once(make_repository(), 2) == []


@pytest.mark.slow
def test_a_second_repro_at_once_is_told_to_wait(make_repository: Callable[..., Path]) -> None:
    root = make_repository()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    first = subprocess.Popen(
        ["dvc", "repro", "labels"],
        cwd=root,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        stage = stage_of(first.pid)
        stage.suspend()  # so that the second one comes in the middle of it
        second = run(root, "dvc", "repro", "labels")
        stage.resume()
        out, _ = first.communicate(timeout=120)
    finally:
        first.kill()
    assert first.returncode == 0, out
    said = second.stdout + second.stderr
    assert second.returncode != 0 and "Traceback" not in said
    assert "is busy, it is being blocked by" in said and "dvc repro labels" in said
    assert "Running stage" not in command(root, "dvc", "repro", "labels")
    left = [path.name for path in (root / "data/interim").iterdir()]
    assert sorted(left) == [".gitignore", "dialogues.parquet", "labels.json"]


def stage_of(pid: int) -> psutil.Process:
    """The stage's process that a dvc process has started, as soon as there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.Process(pid).children(recursive=True):
            if "stages.ingest" in process.cmdline():
                return process
        time.sleep(0.02)
    raise AssertionError("no stage was started")
