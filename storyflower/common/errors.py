"""How a command ends on bad input: with one line and exit code 1.

This module needs only Python 3.9 and no packages, so that it can tell the user of an older Python
that 3.11 is needed.
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

# What the operating system refuses → what the user can do about it.
REMEDIES = {
    errno.ENOSPC: "make room and run it again",
    errno.EDQUOT: "make room and run it again",
    errno.EFBIG: "raise the limit that ulimit -f shows, or use another file system",
    errno.EROFS: "use a folder that can be written to",
    errno.EACCES: "change its owner or its mode, or use another folder",
    errno.EPERM: "change its owner or its mode, or use another folder",
    errno.EIO: "check the disk",
    errno.ENOTCONN: "connect the disk again",  # Colab's Drive, when it is disconnected
}

SERVING = ("fastapi", "prometheus_client", "starlette", "uvicorn")  # what storyflower serve needs

# Line breaks, what a terminal obeys, and marks that turn the text behind them round
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class InputError(Exception):
    """Bad input. One line: where (file, sheet, row, key), what was found, what to do."""

    exit_code = 1


def exit_with_line(main: Callable[[], None]) -> None:
    """Run a command's main(); an InputError becomes one line on stderr and exit code 1.

    So do the system errors in REMEDIES. SIGTERM and Ctrl-C become SystemExit with codes 143 and
    130, so that main() can close what it has open. If nobody reads the output any more (`| head`),
    the command ends silently, as other commands do. Any other exception is a bug in this project
    and keeps its traceback.
    """
    catch(stop)
    os.umask(0o077)  # output may contain personal text, so only the owner may read it
    open_streams()
    try:
        try:
            main()
        except SystemExit:  # also raised by --help
            flush_output()
            raise
        flush_output()
    except BrokenPipeError:
        drop_output()
        sys.exit(128 + signal.SIGPIPE)
    except (InputError, OSError, ImportError) as error:
        if (line := line_of(error)) is None:
            raise
        if isinstance(error, OSError):
            drop_output()
        print(f"error: {line}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


def line_of(error: Exception) -> str | None:
    """What an error says on one line that is no bug in this project; None for any other."""
    if isinstance(error, InputError):
        return escaped(str(error))
    if isinstance(error, ImportError):
        return wrong_python(error)
    if reason := disk_fault(error):
        return escaped(f"{path}: {reason}") if (path := path_of(error)) else reason
    return None


def escaped(line: str) -> str:
    """A line for a terminal: a file's name may hold line breaks and other controls."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


def open_streams() -> None:
    """Make every text printable, whatever the encoding of the output.

    A character that cp949 lacks (emoji) becomes a backslash escape. If the encoding lacks Hangul,
    such characters are written as UTF-8: nobody could read labels written as escapes.
    """
    codecs.register_error("storyflower.utf-8", in_utf8)
    if sys.stderr is None:  # stderr is closed; print(file=None) would write to standard output
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            holds = can_hold(stream, "가")
            stream.reconfigure(errors="backslashreplace" if holds else "storyflower.utf-8")


def in_utf8(error: UnicodeError) -> tuple[bytes, int]:
    rest = error.object[error.start : error.end]
    return rest.encode("utf-8", "backslashreplace"), error.end


def can_hold(stream: io.TextIOBase, text: str) -> bool:
    """Whether a stream's encoding has every character of a text."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def flush_output() -> None:
    if sys.stdout is not None:  # None if standard output is closed
        sys.stdout.flush()


def drop_output() -> None:
    """Drop output that cannot be written; else Python retries at exit and prints an error."""
    try:
        flush_output()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def wrong_python(error: BaseException) -> str | None:
    """The message for a Python that is too old or lacks a package; None for any other error."""
    remedy = "type '. .venv/bin/activate' first, or 'make repro', which makes .venv"
    if sys.version_info < (3, 11):  # noqa: UP036
        number = ".".join(map(str, sys.version_info[:2]))
        return f"{sys.executable} is Python {number}, and 3.11 or newer is needed; {remedy}"
    package = (isinstance(error, ModuleNotFoundError) and error.name or "").partition(".")[0]
    if package in ("", "storyflower", "stages") or package in sys.stdlib_module_names:
        return None
    if not os.path.exists("dvc.yaml"):  # an installed package, run outside the repository
        extra = "serve" if package in SERVING else "pipeline"
        remedy = f"type, in StoryFlower's repository: pip install '.[{extra}]'"
    return f"{sys.executable} has no package {package}; {remedy}"


def excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Python's own hook, but with one line for a wrong Python, which can fail before main()."""
    if reason := wrong_python(error):
        print(f"error: {reason}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def disk_fault(error: BaseException) -> str | None:
    """Why the system refuses to write or read, and what to do; None for any other error.

    safetensors raises its own exception and gives the system's error number only in the message.
    """
    number = error.errno if isinstance(error, OSError) else None
    if wrapped := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(wrapped[1])
    if number not in REMEDIES:
        return None
    message = os.strerror(number)
    return f"{message[0].lower()}{message[1:]}; {REMEDIES[number]}"


def one_line(error: object, limit: int = 200) -> str:
    """An error's message on one line of at most `limit` characters; its type if it has no message.

    For exceptions from libraries, whose messages may have several lines or be empty.
    """
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= limit else f"{message[: limit - 1]}…"


def path_of(error: BaseException) -> str | None:
    """The file that a system error names, if any; for a copy, the new file."""
    return getattr(error, "filename2", None) or getattr(error, "filename", None)
