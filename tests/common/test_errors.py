"""How an error becomes one line, and which keep their traceback."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storyflower.common.errors import InputError, excepthook, exit_with_line, line_of, one_line
from tests.support import ROOT


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\n  b\r\n\tc\u2028d"), "a b c d"),
        (ValueError(), "ValueError"),
        (KeyError("key"), "'key'"),
        (OSError(" \n "), "OSError"),
        ("said\nalready", "said already"),
        ("가" * 200, "가" * 200),
        ("가" * 201, "가" * 199 + "…"),
    ],
)
def test_one_line(error: object, line: str) -> None:
    assert one_line(error) == line


def test_the_limit() -> None:
    assert one_line("123456", limit=4) == "123…"


@pytest.mark.parametrize(
    "error",
    [
        lambda name: InputError(f"{name}: not readable"),
        lambda name: OSError(errno.EROFS, "read-only", name),
    ],
)
def test_a_file_s_name_breaks_no_line(error: Callable[[str], Exception]) -> None:
    line = line_of(error("일기\n\x1b[31m\r\x85\u2028\u202e 1.csv"))
    assert line.startswith(r"일기\n\x1b[31m\r\x85\u2028\u202e 1.csv: ")


# As python -m, but with neither the environment's packages nor what PYTHONPATH adds.
START = "import runpy, sys; sys.path.insert(0, sys.argv[1]); name = sys.argv[2]; "
START += "sys.argv[:3] = [name]; runpy.run_module(name, run_name='__main__', alter_sys=True)"


@pytest.mark.parametrize("words", [["stages.labels"], ["storyflower", "predict", "글"]])
def test_a_python_without_the_packages(words: list[str]) -> None:
    """As `.venv/bin/dvc repro` starts it in a shell where the environment is not active."""
    command = [sys.executable, "-I", "-S", "-c", START, str(ROOT), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {sys.executable} has no package ")
    assert "'. .venv/bin/activate'" in line


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'storyflower.x'", name="storyflower.x"),
        ModuleNotFoundError("No module named 'json.x'", name="json.x"),
        ImportError("cannot import name 'x' from 'torch'", name="torch"),
        ValueError("x"),
    ],
)
def test_a_defect_keeps_its_traceback(error: Exception, capfd: pytest.CaptureFixture) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        exit_with_line(main)
    excepthook(type(error), error, None)
    assert capfd.readouterr().err.splitlines()[-1].endswith(str(error))


def test_a_package_that_an_installed_command_lacks(tmp_path: Path, monkeypatch, capfd) -> None:
    def main() -> None:
        raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow.tracking")

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        exit_with_line(main)
    remedy = "has no package mlflow; type, in StoryFlower's repository: pip install '.[pipeline]'\n"
    assert (stop.value.code, capfd.readouterr().err) == (1, f"error: {sys.executable} {remedy}")


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    error = ImportError("cannot import name 'Self' from 'typing'")
    monkeypatch.setattr(sys, "version_info", (3, 10, 12, "final", 0))
    excepthook(ImportError, error, None)
    line = capfd.readouterr().err
    assert line.startswith(f"error: {sys.executable} is Python 3.10, and 3.11 or newer is needed; ")
    assert line.count("\n") == 1
