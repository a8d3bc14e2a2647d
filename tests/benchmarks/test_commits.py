"""Two commits side by side, in worktrees that are gone afterwards."""

import subprocess
import sys

import pytest

from benchmarks import commits
from storyflower.common.errors import InputError
from tests.support import ROOT


@pytest.mark.slow
def test_each_commit_has_a_row(monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    words = ["commits", "HEAD", "HEAD", "--shape", "default", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", words)
    commits.main()
    _, _, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("| HEAD | ")
    assert " to " not in first
    assert " to " in second
    known = ["git", "worktree", "list"]
    assert "storyflower-commit-" not in subprocess.check_output(known, text=True)


def test_an_unknown_commit_is_one_line(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["commits", "no-such-commit"])
    with pytest.raises(InputError, match="no-such-commit: fatal: invalid reference"):
        commits.main()
