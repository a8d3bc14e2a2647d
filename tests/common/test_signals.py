"""A terminal that is closed: the work at hand is saved, unless nohup started it."""

import os
import pty
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT

# It prints at each step, as a training does; the terminal may be gone by then.
WORK = """
import os, signal, sys, time
from pathlib import Path
from storyflower.common.errors import exit_with_line
from storyflower.common.signals import PendingStop

def main():
    with PendingStop() as stop:
        Path(sys.argv[1], "ready").touch()
        for _ in range(100):
            time.sleep(0.02)
            if stop or sys.argv[2] != "tee":
                print("a step", file=sys.stderr, flush=True)
            if stop:
                Path(sys.argv[1], "saved").touch()
                stop.leave("stopped; saved")

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
if sys.argv[2] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
if sys.argv[2] == "tee":
    reader, writer = os.pipe()
    os.close(reader)  # tee gets the signal, too
    for number in (1, 2):
        os.dup2(writer, number)
exit_with_line(main)
"""


@pytest.mark.parametrize(
    ("how", "code", "saved"),
    [
        ("terminal", 128 + signal.SIGHUP, True),
        ("tee", 128 + signal.SIGHUP, True),
        ("nohup", 0, False),
    ],
)
def test_a_closed_terminal(how: str, code: int, saved: bool, tmp_path: Path) -> None:
    number, terminal = pty.fork()
    if number == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", WORK, str(tmp_path), how])
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    os.close(terminal)
    _, status = os.waitpid(number, 0)
    assert os.waitstatus_to_exitcode(status) == code
    assert (tmp_path / "saved").exists() == saved
