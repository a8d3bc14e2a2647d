"""The one exception that means "your input or your set-up, not our code"."""

import signal
import sys
from collections.abc import Callable


class InputError(Exception):
    """Bad input, said in one line: where (file, sheet, row, key), what was found, what to do."""


def exit_with_line(main: Callable[[], None]) -> None:
    """Run a command's main(); an InputError becomes one line on stderr and exit code 1.

    SIGTERM becomes SystemExit with code 143, so that what main() has open is closed. Anything else
    is a defect of ours and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, stop)
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def stop(number: int, _: object) -> None:
    """Leave through every finally and except; a second signal must not cut those short."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)
