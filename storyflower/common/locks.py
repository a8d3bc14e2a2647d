"""Locks held by one process; the system frees them when the process ends, even if it is killed.

In: the path of a lock file, or the folder that it guards.
Out: the lock, held. A .pid file beside it names the process that holds it.
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
    """Hold a lock, also as a context; if another process holds it, say so once and wait.

    `what` says what the other process does. Usually it is a stage whose dvc was killed: the stage
    goes on, and a second `dvc repro` must not run at the same time.
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
        held = acquire_free(path, seconds=-1)
    return held


def acquire_free(path: Path, seconds: float = 0) -> filelock.AcquireReturnProxy | None:
    """Hold a lock, also as a context; None if another process still holds it after `seconds`.

    -1 waits without a limit.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, thread_local=False)
    try:
        held = lock.acquire(timeout=seconds)
    except filelock.Timeout:
        return None
    with suppress(OSError):  # such as a full disk; the number is only used in messages
        path.with_suffix(".pid").write_text(str(os.getpid()), encoding="utf-8")
    return held


def remove(folder: Path) -> None:
    """Remove a folder and its lock, which the caller holds; ignores what cannot be removed."""
    shutil.rmtree(folder, ignore_errors=True)
    remove_files(beside(folder))


def remove_files(lock: Path) -> None:
    """Remove a lock file, which the caller holds, and the .pid file beside it, if possible."""
    for path in (lock.with_suffix(".pid"), lock):
        with suppress(OSError):  # one that is left behind locks nothing
            path.unlink()
