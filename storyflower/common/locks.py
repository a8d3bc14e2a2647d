"""Locks that one process holds and that the system frees when it dies, however it dies.

In: the path of a lock file, or the folder that it guards.
Out: the lock, held. A file beside it says which process holds it.
"""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import filelock


def beside(folder: Path) -> Path:
    """The lock file of a folder."""
    return folder.with_name(folder.name + ".lock")


def acquire(path: Path, what: str) -> filelock.AcquireReturnProxy:
    """Hold a lock, also as a context; while another process does, say once what it does, and wait.

    The usual other process is a stage whose dvc was killed: it lives on, and a second `dvc repro`
    must not work beside it.
    """
    held = acquire_free(path)
    if held is None:
        holder = path.with_suffix(".pid")
        number = holder.read_text(encoding="utf-8") if holder.exists() else "unknown"
        print(
            f"waiting: process {number} {what}; this one goes on when that has ended "
            f"(kill {number} ends it, and it saves first)",
            file=sys.stderr,
            flush=True,
        )
    while held is None:
        held = acquire_free(path, seconds=0.5)
    return held


def acquire_free(path: Path, seconds: float = 0) -> filelock.AcquireReturnProxy | None:
    """Hold a lock, also as a context; None where another process still does after `seconds`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, thread_local=False)
    try:
        held = lock.acquire(timeout=seconds)
    except filelock.Timeout:
        return None
    with suppress(OSError):  # a full disk: the number is for messages alone
        path.with_suffix(".pid").write_text(str(os.getpid()), encoding="utf-8")
    return held


def remove(folder: Path) -> None:
    """Remove a folder and its lock, which the caller holds, as far as the system lets us."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in (beside(folder).with_suffix(".pid"), beside(folder)):
        with suppress(OSError):  # Windows keeps a file that is open
            path.unlink()
