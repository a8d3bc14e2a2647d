"""How a command ends on a signal: without a traceback, and its work at hand whole."""

from __future__ import annotations  # as in errors.py: an old Python reads it, too

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # Ctrl-C is SIGINT; a closed terminal HUP


def stop(number: int, _: object) -> NoReturn:
    """Leave through every finally and except; a second signal must not cut those short."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


class PendingStop:
    """A context in which SIGTERM and Ctrl-C are only noted, so that the work at hand ends whole.

    It is true once one has come; leave() then ends the process.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> PendingStop:
        if threading.current_thread() is threading.main_thread():  # others get no signals
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
        print(line, file=sys.stderr, flush=True)
        sys.exit(128 + self.number)

    def _note(self, number: int, _: object) -> None:
        if not self.number:
            self.number = number
            os.write(2, b"stopping, after this step\n")  # print() may be what was interrupted


def catch(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Set the handler of both signals, unless one is ignored (nohup); return those before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in heard:
        signal.signal(number, handler)
    return heard
