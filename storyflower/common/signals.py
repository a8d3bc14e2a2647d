"""How a command ends on a signal: without a traceback and without half-done work."""

from __future__ import annotations  # an old Python imports this module too, as in errors.py

import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

# Ctrl-C sends SIGINT, a closed terminal SIGHUP.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def stop(number: int, _: object) -> NoReturn:
    """Exit through every finally and except block; a second signal must not interrupt them."""
    signal.signal(number, signal.SIG_IGN)
    if number == signal.SIGHUP:
        let_go_of_terminal()
    sys.exit(128 + number)


class PendingStop:
    """A context in which a stop signal is only noted, so that the current step can finish.

    The object is true once a signal has arrived; leave() then ends the process.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> PendingStop:
        if threading.current_thread() is threading.main_thread():  # other threads get no signals
            self._before = catch(self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if number == self.number else handler)
        if self and kind is None:
            self.leave("stopped")

    def __bool__(self) -> bool:
        return self.number > 0

    def leave(self, line: str) -> NoReturn:
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)
        sys.exit(128 + self.number)

    def _note(self, number: int, _: object) -> None:
        if not self.number:
            self.number = number
            if number == signal.SIGHUP:
                let_go_of_terminal()
            with suppress(OSError):  # the reader of stderr may have just ended
                os.write(2, b"stopping, after this step\n")  # the signal may interrupt a print()


def catch(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Set the handler of all SIGNALS that are not ignored (nohup); return the old handlers."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in heard:
        signal.signal(number, handler)
    return heard


def let_go_of_terminal() -> None:
    """Redirect output to /dev/null if the terminal, or a pipe that closed with it, is gone.

    Such a pipe is `| tee`. Otherwise the next line that a training prints would end the training
    before it has saved.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):
        with suppress(OSError):  # it was already closed
            mode = os.fstat(number).st_mode
            dead = stat.S_ISCHR(mode) and not os.isatty(number)
            if stat.S_ISFIFO(mode):
                reader = select.poll()
                reader.register(number, 0)
                dead = bool(reader.poll(0))  # any answer is an error: no other event was requested
            if dead:
                os.dup2(nowhere, number)
