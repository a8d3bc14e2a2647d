"""How a command ends on bad input: in one line and with exit code 1."""

import errno
import os
import re
import sys
from collections.abc import Callable

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


def exit_with_line(main: Callable[[], None]) -> None:
    """Run a command's main(); an InputError becomes one line on stderr and exit code 1.

    So does what the system refuses. SIGTERM and Ctrl-C become SystemExit with the codes 143 and
    130, so that what main() has open is closed. Anything else is a defect of ours and keeps its
    traceback.
    """
    catch(stop)
    os.umask(0o077)  # what a command writes may hold somebody's words: it is the owner's alone
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if (reason := disk_fault(error)) is None:
            raise
        place = f"{path}: " if (path := path_of(error)) else ""
        print(f"error: {place}{reason}", file=sys.stderr)
        sys.exit(1)


def disk_fault(error: BaseException) -> str | None:
    """Why the system refuses to write or read, and what to do; None for any other error.

    safetensors puts the system's number into an exception of its own, as text.
    """
    number = error.errno if isinstance(error, OSError) else None
    if wrapped := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(wrapped[1])
    if number not in REMEDIES:
        return None
    said = os.strerror(number)
    return f"{said[0].lower()}{said[1:]}; {REMEDIES[number]}"


def path_of(error: BaseException) -> str | None:
    """The file that an error of the system is about, if it says so; of a copy, the new one."""
    return getattr(error, "filename2", None) or getattr(error, "filename", None)


def one_line(error: object, limit: int = 200) -> str:
    """What an error says, white space folded and cut; its type's name where it says nothing."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
