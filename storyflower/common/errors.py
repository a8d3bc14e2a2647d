"""How a command ends on bad input: in one line and with exit code 1.

This module is also read by a Python that is too old for the others, to say so: it needs only 3.9
and no package.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from types import TracebackType

from storyflower.common.signals import catch, stop

# What the system refuses → what to do about it.
REMEDIES = {
    errno.ENOSPC: "make room and run it again",
    errno.EDQUOT: "make room and run it again",
    errno.EFBIG: "raise the limit that ulimit -f shows, or use another file system",
    errno.EROFS: "use a folder that can be written to",
    errno.EACCES: "change its owner or its mode, or use another folder",
    errno.EPERM: "change its owner or its mode, or use another folder",
    errno.EIO: "check the disk",
    errno.ENOTCONN: "connect the disk again",  # what Colab's Drive says when it is gone
}


class InputError(Exception):
    """Bad input, said in one line: where (file, sheet, row, key), what was found, what to do."""

    exit_code = 1


def exit_with_line(main: Callable[[], None]) -> None:
    """Run a command's main(); an InputError becomes one line on stderr and exit code 1.

    So does what the system refuses. SIGTERM and Ctrl-C become SystemExit with the codes 143 and
    130, so that what main() has open is closed; where nobody reads its output any more (`| head`),
    it ends without a word, as other commands do. Anything else is a defect of ours and keeps its
    traceback.
    """
    catch(stop)
    os.umask(0o077)  # what a command writes may hold somebody's words: it is the owner's alone
    open_streams()
    try:
        try:
            main()
        except SystemExit:  # of --help, too
            flush_output()
            raise
        flush_output()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        drop_output()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if (reason := disk_fault(error)) is None:
            raise
        drop_output()
        where = f"{path}: " if (path := path_of(error)) else ""
        print(f"error: {where}{reason}", file=sys.stderr)
        sys.exit(1)
    except ImportError as error:
        if (reason := wrong_python(error)) is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(1)


def open_streams() -> None:
    """Have every text go out, whatever encoding the output was given.

    What cp949 cannot hold (emoji) becomes a backslash and a number. An encoding without Hangul gets
    it in UTF-8 all the same: labels in numbers could not be read.
    """
    codecs.register_error("storyflower.utf-8", in_utf8)
    if sys.stderr is None:  # closed; print(file=None) would write to standard output
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            holds = can_hold(stream, "가")
            stream.reconfigure(errors="backslashreplace" if holds else "storyflower.utf-8")


def in_utf8(error: UnicodeError) -> tuple[bytes, int]:
    rest = error.object[error.start : error.end]
    return rest.encode("utf-8", "backslashreplace"), error.end


def can_hold(stream: io.TextIOBase, text: str) -> bool:
    """Whether the encoding of a stream has all characters of a text."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def flush_output() -> None:
    if sys.stdout is not None:  # it is None where standard output was closed
        sys.stdout.flush()


def drop_output() -> None:
    """Drop what cannot be written: Python would try again at its end, and complain."""
    try:
        flush_output()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def wrong_python(error: BaseException) -> str | None:
    """What to say of a Python that lacks what a command imports; None for any other error."""
    remedy = "type '. .venv/bin/activate' first, or 'make repro', which makes .venv"
    if sys.version_info < (3, 11):  # noqa: UP036
        number = ".".join(map(str, sys.version_info[:2]))
        return f"{sys.executable} is Python {number}, and 3.11 or newer is needed; {remedy}"
    package = (isinstance(error, ModuleNotFoundError) and error.name or "").partition(".")[0]
    if package in ("", "storyflower", "stages") or package in sys.stdlib_module_names:
        return None
    if not os.path.exists("dvc.yaml"):  # installed, and run in any folder
        remedy = "type: pip install 'storyflower[pipeline]'"
    return f"{sys.executable} has no package {package}; {remedy}"


def excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """As Python's own, but for a wrong Python it prints one line: for imports before main()."""
    if reason := wrong_python(error):
        print(f"error: {reason}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def disk_fault(error: BaseException) -> str | None:
    """Why the system refuses to write or read, and what to do; None for any other error.

    safetensors puts the system's number into an exception of its own, as text.
    """
    number = error.errno if isinstance(error, OSError) else None
    if wrapped := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(wrapped[1])
    if number not in REMEDIES:
        return None
    message = os.strerror(number)
    return f"{message[0].lower()}{message[1:]}; {REMEDIES[number]}"


def one_line(error: object, limit: int = 200) -> str:
    """What an error says, on one line of at most `limit` characters; its kind if it says nothing.

    For what libraries raise: their messages have lines of their own, or none.
    """
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= limit else f"{message[: limit - 1]}…"


def path_of(error: BaseException) -> str | None:
    """The file that an error of the system is about, if it says so; of a copy, the new one."""
    return getattr(error, "filename2", None) or getattr(error, "filename", None)
