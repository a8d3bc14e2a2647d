"""The mirror of a run in MLflow, and the only import of mlflow.

In: params, metrics with their timestamps, pictures.
Out: one MLflow run. The project's own files are the truth; everything logged is first written to
a record in an outbox folder of the main repository, and a background thread then makes the MLflow
run equal to the record. Pushing a record twice changes nothing (a run is found again by its key,
a metric by its timestamp), so a record that could not be delivered is simply pushed again later:
`python -m storyflower sync`. A lock beside the record, held while its run lives, tells sync which
runs were killed, and keeps two processes from pushing one record at the same time.

Not supported: logging that blocks. An MLflow that is down costs a line of output, never a
training.
"""

import math
import shutil
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import filelock

from storyflower.common.errors import InputError
from storyflower.common.files import replacing
from storyflower.common.repository import main_root
from storyflower.tracking import mlflow
from storyflower.tracking.record import OUTBOX, Record, milliseconds

CLOSE_SECONDS = 8  # how long the end of a stage may wait for a server
LATE_CLOSE_SECONDS = 1  # and where the stage before it has waited in vain
LOCAL_CLOSE_SECONDS = 300  # and for a local store without an error: only a busy machine is slow
RETRY_SECONDS = 0.5  # between two tries at the end of a stage
LONGEST_PAUSE = 30  # seconds between two pushes during a training


class Run:
    """One run, logged to the outbox at once and to MLflow when it answers.

    As a context it ends FINISHED, FAILED after an error, KILLED after Ctrl-C or SIGTERM. A run that
    had ended before, and to which a later stage adds, keeps its end.
    """

    def __init__(self, record: Record, root: Path | None = None):
        self.record = record
        self.root = root or main_root()
        self.folder = self.root / OUTBOX / record.key
        self._owner = owner_lock(self.folder)
        waiting = False
        while not self._owner.is_locked:
            try:
                self._owner.acquire(timeout=0.5)
            except filelock.Timeout:  # sync, or another experiment that evaluates the same model
                if not waiting:
                    said = f"waiting for another process, or a late push, of the run {record.name}"
                    print(said, file=sys.stderr)
                waiting = True
        self._told = self.folder / "told"  # there once it was said that MLflow lacks the run
        if self.folder.exists():  # a stage before could not deliver it
            self._take_over()
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._ending = self._deadline = math.inf
        self._delivered = 0  # how many changes of the record MLflow has seen
        self._changes = 0
        self._error = ""
        self._save()
        # A daemon: a server that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._mirror, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        with suppress(InputError):  # the first error is the one to show
            self.close("FAILED" if issubclass(kind, Exception) else "KILLED")

    def log(self, values: dict[str, float], step: int = 0) -> None:
        """Log metrics at a step. MLflow has no place for NaN and infinity: they are left out."""
        now = milliseconds()
        # A run that goes on may come to a step again that it has logged before it died.
        old = {(key, step) for key, _, _, step in self.record.metrics}
        finite = [(key, float(value)) for key, value in values.items() if math.isfinite(value)]
        new = [(key, value, now, step) for key, value in finite if (key, step) not in old]
        self.record.metrics += new
        self._save()

    def log_results(self, values: dict[str, float]) -> None:
        """Log metrics that have one value a run; logged anew, equal values add no second point."""
        now = milliseconds()
        finite = [(key, float(value)) for key, value in values.items() if math.isfinite(value)]
        self.record.results += [(key, value, now) for key, value in finite]
        self._save()

    def attach(self, *paths: Path) -> None:
        """Add files to the run; they are copied, so the originals may go."""
        for path in paths:
            with replacing() as beside:
                shutil.copyfile(path, beside(self.folder / path.name))
            if path.name not in self.record.artifacts:
                self.record.artifacts.append(path.name)
        self._save()

    def close(self, status: str = "FINISHED") -> None:
        """End the run and wait a few seconds for MLflow; say so once if it does not take the run.

        Raises InputError when the record cannot be written.
        """
        if self.record.status == "RUNNING":
            self.record.status, self.record.end = status, milliseconds()
        self._ending = self._deadline = time.monotonic()
        try:
            self._save()
            busy = mlflow.is_local(mlflow.tracking_uri(self.root)) and not self._error
            self._deadline += LOCAL_CLOSE_SECONDS if busy else self._patience()
        finally:  # where the disk is full, the thread ends at once
            self._closing.set()
            self._changed.set()
        while self._thread.is_alive() and (left := self._deadline - time.monotonic()) > 0:
            self._thread.join(min(left, RETRY_SECONDS))
        if delivered := self._delivered == self._changes:
            clear(self.folder)
        self._given_up.set()  # a late push holds the lock until it ends
        if not self._thread.is_alive():
            self._owner.release()
        if not delivered and not self._told.exists():
            reason = self._error or f"no answer within {self._deadline - self._ending:.0f} s"
            print(
                f"MLflow has not got this run ({reason}); nothing is lost. "
                "When it is back: python -m storyflower sync",
                file=sys.stderr,
            )
            with suppress(OSError):
                self._told.touch()

    def _patience(self) -> float:
        """Seconds that the end of the stage may wait for an MLflow that has failed, or is far."""
        late = self._told.exists() and not self._delivered
        return LATE_CLOSE_SECONDS if late else CLOSE_SECONDS

    def _take_over(self) -> None:
        """Keep what an earlier evaluation added to the record that still waits in the outbox."""
        with suppress(OSError, ValueError, TypeError):  # a damaged record adds nothing
            waiting = Record.load(self.folder / "record.json")
            known = {tuple(item) for item in self.record.results}
            earlier = [item for item in waiting.results if tuple(item) not in known]
            self.record.results = earlier + self.record.results
            names = {**dict.fromkeys(waiting.artifacts), **dict.fromkeys(self.record.artifacts)}
            self.record.artifacts = [name for name in names if (self.folder / name).is_file()]

    def _save(self) -> None:
        self.record.save(self.folder / "record.json")
        self._changes += 1
        self._changed.set()

    def _mirror(self) -> None:
        while True:
            self._changed.wait(RETRY_SECONDS if self._closing.is_set() else None)
            self._changed.clear()
            changes, start = self._changes, time.monotonic()
            try:
                if self._delivered < changes:
                    mlflow.push(Record.load(self.folder / "record.json"), self.folder, self.root)
                    self._delivered, self._error = changes, ""
            except Exception as error:  # whatever it is, it must not touch the training
                self._error = mlflow.one_line(error)
                if self._closing.is_set():  # the store, not a busy machine, is what is slow
                    self._deadline = min(self._deadline, self._ending + self._patience())
            now = time.monotonic()
            if not self._closing.is_set():
                # The training shares this processor: a twentieth of the time is enough for MLflow.
                self._closing.wait(min(20 * (now - start), LONGEST_PAUSE))
            elif self._delivered == self._changes or now + RETRY_SECONDS > self._deadline:
                break
        if self._given_up.is_set():
            self._owner.release()


def owner_lock(folder: Path) -> filelock.BaseFileLock:
    """The lock of an outbox folder; the system frees it when its process dies, however it dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder.with_suffix(".lock"), thread_local=False)


def clear(folder: Path) -> None:
    """Remove a delivered record and its lock, which the caller holds."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # Windows keeps a file that is open
        folder.with_suffix(".lock").unlink()


def sync(root: Path) -> tuple[int, int]:
    """Push the records whose process no longer lives; return (delivered, of living processes).

    A run whose process died without closing it ends as KILLED, at the time of its last metric.
    """
    delivered, living, failed = 0, 0, []
    for path in sorted((root / OUTBOX).glob("*/record.json")):
        try:
            with owner_lock(path.parent).acquire(blocking=False):
                if path.exists():  # else another sync was faster
                    record = Record.load(path)
                    if record.status == "RUNNING":
                        end = max([record.start, *(ms for _, _, ms, _ in record.metrics)])
                        record.status, record.end = "KILLED", end
                        record.save(path)
                    mlflow.push(record, path.parent, root)
                    delivered += 1
                clear(path.parent)
        except filelock.Timeout:
            living += 1
        except Exception as error:
            failed.append(mlflow.one_line(error))
    if failed:
        raise InputError(
            f"MLflow does not take {len(failed)} runs, which still wait in {root / OUTBOX} "
            f"({delivered} delivered); the first of them: {failed[0]}"
        )
    return delivered, living
