"""How a repository was cloned, and what make and the command line say of a machine."""

import importlib
import os
import socket
import subprocess
from pathlib import Path

import pytest

from storyflower.common import repository
from tests.support import ROOT, command, environment_of, run

OTHER_STAGES = ("ingest", "labels", "encoder", "tokenize", "evaluate")


def shallow(tmp_path: Path) -> Path:
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    command(origin, "git", "init", "-q", "-b", "main")
    for number in ("1", "2"):
        (origin / "file").write_text(number)
        command(origin, "git", "add", "-A")
        command(origin, "git", "commit", "-qm", number)
    command(tmp_path, "git", "clone", "-q", "--depth", "1", origin.as_uri(), str(clone))
    return clone


def test_a_shallow_clone_is_warned_of_and_refused_where_its_results_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    clone = shallow(tmp_path)
    monkeypatch.chdir(clone)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    repository.check_clone()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: a shallow clone") and "git fetch --unshallow" in line
    experiment = tmp_path / "experiment"
    experiment.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(clone))  # as DVC does for --temp and the queue
    monkeypatch.chdir(experiment)
    for begin in (
        repository.check_clone,  # before a training
        *(importlib.import_module(f"stages.{name}").main for name in OTHER_STAGES),
    ):
        with pytest.raises(repository.NotKept, match="git fetch --unshallow") as refused:
            begin()
        assert refused.value.exit_code == 2
    command(clone, "git", "fetch", "-q", "--unshallow")
    repository.check_clone()
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder to another user")
def test_a_clone_of_another_user_is_told_how_to_trust_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    clone = shallow(tmp_path)
    command(clone, "git", "fetch", "-q", "--unshallow")
    os.chown(clone, 12345, 12345)
    os.chown(clone / ".git", 12345, 12345)
    monkeypatch.setenv("DVC_ROOT", str(clone))
    monkeypatch.delenv("SUDO_UID", raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("LANGUAGE", "ko")  # git speaks it, too
    monkeypatch.chdir(clone)
    repository.check_clone()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"git config --global --add safe.directory {clone}")


def make(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = environment_of(
        **more, HOME=str(folder), GIT_CEILING_DIRECTORIES=str(folder.parent)
    )
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of the `make test` that runs this
        environment.pop(name, None)
    return subprocess.run(
        ["make", "-f", ROOT / "Makefile", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_says_what_git_lacks_before_it_installs(tmp_path: Path) -> None:
    done = make(tmp_path, "repro")
    assert done.returncode != 0 and "git init" in done.stdout
    assert not (tmp_path / ".venv").exists()
    command(tmp_path, "git", "init", "-q")
    done = make(tmp_path, "git", GIT_COMMITTER_NAME="", GIT_COMMITTER_EMAIL="")
    assert done.returncode == 0 and "git config user.name" in done.stdout
    assert make(tmp_path, "git").stdout == ""
    if os.geteuid() == 0:  # of another user's git says nothing, and it is there all the same
        os.chown(tmp_path / ".git", 12345, 12345)
        assert make(tmp_path, "git").stdout == ""


def test_make_calls_every_program_by_its_path() -> None:
    """make 3.81 does not look for a recipe's first word on the PATH that the Makefile sets."""
    for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines():
        words = line.strip().removeprefix("@").removeprefix("STORYFLOWER_CONFORMANCE=1 ").split()
        if line.startswith("\t") and words:
            assert words[0] not in ("python", "dvc", "mlflow", "ruff", "pytest"), line


def test_a_busy_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        done = run(ROOT, "python", "-m", "storyflower", "ui", "--port", str(port))
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: port {port} of 127.0.0.1 cannot be used")
    assert line.endswith("make ui PORT=5001")
