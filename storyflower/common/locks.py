"""A lock that one process holds and that the system frees when the process dies."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock; while another process does, say so once and wait.

    The system frees a lock when its process dies, however it dies. The usual other process is a
    stage whose dvc was killed: it lives on, and a second `dvc repro` must not work beside it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    holder = lock.with_suffix(".pid")
    file = filelock.FileLock(lock, thread_local=False)
    try:
        file.acquire(blocking=False)
    except filelock.Timeout:
        number = holder.read_text(encoding="utf-8") if holder.exists() else "unknown"
        print(
            f"waiting: process {number} {what}; this one goes on when that has ended "
            f"(kill {number} ends it, and it saves first)",
            file=sys.stderr,
            flush=True,
        )
        file.acquire(poll_interval=0.5)
    try:
        holder.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        file.release()
