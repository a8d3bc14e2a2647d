"""A run in progress: logged to its record at once, and to MLflow when it responds.

In: params, metrics with their timestamps, pictures.
Out: one MLflow run. The project's own files are the source of truth. Everything logged is first
written to a record in an outbox folder of the main repository. After each epoch, a thread makes the
MLflow run equal to the record, and the end of the stage waits a few seconds for the last push.
Pushing a record twice changes nothing, so a record that was not delivered is simply pushed again
later: `python -m storyflower sync`. A lock beside the record is held while its run is alive: so
sync can tell which runs were killed, and no two processes push one record at the same time.
Not supported: logging that blocks. If MLflow is down, a line is printed and the training goes on.
"""

import math
import shutil
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from storyflower.common import locks
from storyflower.common.errors import InputError
from storyflower.common.files import replacing
from storyflower.common.repository import main_root
from storyflower.tracking import mlflow
from storyflower.tracking.record import OUTBOX, Record, milliseconds

CLOSE_SECONDS = 8  # how long the end of a stage may wait for a server
LATE_CLOSE_SECONDS = 1  # the same, if an earlier stage of the run has already waited in vain
LOCAL_CLOSE_SECONDS = 300  # the same, for a local store without errors: the machine is just busy
RETRY_SECONDS = 0.5  # between two tries at the end of a stage
LONGEST_PAUSE = 30  # seconds; the longest pause between two pushes


class Run:
    """One run, logged to the outbox at once and to MLflow when it responds.

    As a context, it ends as FINISHED, as FAILED after an error, or as KILLED after Ctrl-C or
    SIGTERM. If the run had already ended and a later stage adds to it, its status and end stay.
    """

    def __init__(self, record: Record, root: Path | None = None):
        self.record = record
        self.root = root or main_root()
        self.folder = self.root / OUTBOX / record.key
        # Sync may hold this lock, or another experiment that evaluates the same model.
        held = locks.acquire(locks.beside(self.folder), f"works on the run {record.name}")
        self._lock = held.lock
        self._told = self.folder / "told"  # exists once we have printed that MLflow lacks the run
        if self.folder.exists():  # an earlier stage could not deliver the record
            self._take_over()
        self._changes = 0
        self._delivered = 0  # how many changes of the record MLflow has seen
        self._error = ""  # of the last push; after an error, only the end of the stage pushes again
        self._thread: threading.Thread | None = None  # of the last push
        self._next = 0.0  # earliest time of the next push
        self._save()
        self._push()  # at once: importing MLflow and creating its database take seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        with suppress(InputError):  # the first error is the one to show
            self.close("FAILED" if issubclass(kind, Exception) else "KILLED")

    def log(self, values: dict[str, float], step: int = 0) -> None:
        """Log metrics at a step. NaN and infinity are left out: MLflow cannot store them."""
        now = milliseconds()
        # A resumed run may repeat a step that it logged before it died.
        old = {(key, step) for key, _, _, step in self.record.metrics}
        finite = [(key, float(value)) for key, value in values.items() if math.isfinite(value)]
        new = [(key, value, now, step) for key, value in finite if (key, step) not in old]
        self.record.metrics += new
        self._save()
        if not self._error and time.monotonic() > self._next:
            self._push()

    def log_results(self, values: dict[str, float]) -> None:
        """Log metrics with one value per run; logging an equal value again adds no second point."""
        now = milliseconds()
        finite = [(key, float(value)) for key, value in values.items() if math.isfinite(value)]
        self.record.results += [(key, value, now) for key, value in finite]
        self._save()

    def attach(self, *paths: Path) -> None:
        """Add files to the run; they are copied, so the originals may be deleted."""
        for path in paths:
            with replacing() as beside:
                shutil.copyfile(path, beside(self.folder / path.name))
            if path.name not in self.record.artifacts:
                self.record.artifacts.append(path.name)
        self._save()

    def close(self, status: str = "FINISHED") -> None:
        """End the run and wait a few seconds for MLflow; warn once if MLflow does not take the run.

        Raises InputError if the record cannot be written.
        """
        if self.record.status == "RUNNING":
            self.record.status, self.record.end = status, milliseconds()
        try:
            self._save()
            start = time.monotonic()
            while self._delivered < self._changes:
                left = start + self._patience() - time.monotonic()
                if left <= 0:
                    self._warn(f"no answer within {self._patience()} s")
                    return
                self._push()
                self._thread.join(left)
                if self._error:
                    time.sleep(min(left, RETRY_SECONDS))
            locks.remove(self.folder)
        finally:
            self._lock.release()  # a push still in progress keeps holding it

    def _patience(self) -> float:
        """Seconds that the end of the stage may wait: fewer if MLflow is remote or has failed."""
        if not self._error and mlflow.is_local(mlflow.tracking_uri(self.root)):
            return LOCAL_CLOSE_SECONDS
        late = self._told.exists() and not self._delivered
        return LATE_CLOSE_SECONDS if late else CLOSE_SECONDS

    def _warn(self, reason: str) -> None:
        """Print that MLflow lacks the run: once per run, not once per stage."""
        if not self._told.exists():
            print(
                f"MLflow has not got this run ({self._error or reason}); nothing is lost. "
                "When it is back: python -m storyflower sync",
                file=sys.stderr,
            )
            with suppress(OSError):
                self._told.touch()

    def _take_over(self) -> None:
        """Keep what an earlier evaluation added to the record, if it is still in the outbox."""
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

    def _push(self) -> None:
        """Start a push of the record to MLflow, unless one is in progress."""
        if self._thread and self._thread.is_alive():
            return
        self._lock.acquire()  # a second time: it is free after both the run and its last push end
        # A daemon: a server that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._mirror, args=[self._changes], daemon=True)
        self._thread.start()

    def _mirror(self, changes: int) -> None:
        start = time.monotonic()
        try:
            mlflow.push(Record.load(self.folder / "record.json"), self.folder, self.root)
            self._delivered, self._error = changes, ""
        except Exception as error:  # no error of MLflow may stop the training
            self._error = mlflow.one_line(error)
        finally:
            # The training uses the same processor, so MLflow gets about 1/20 of the time.
            now = time.monotonic()
            self._next = now + min(20 * (now - start), LONGEST_PAUSE)
            self._lock.release()


def sync(root: Path) -> tuple[int, int]:
    """Push the records of runs that have ended or died; return (delivered, still running).

    A run whose process died without closing it ends as KILLED, at the time of its last metric.
    Raises InputError if MLflow does not take some of them.
    """
    delivered, living, failed = 0, 0, []
    for path in sorted((root / OUTBOX).glob("*/record.json")):
        try:
            held = locks.acquire_free(locks.beside(path.parent))
            if held is None:
                living += 1
                continue
            with held:
                if path.exists():  # if not, another sync has just delivered it
                    record = Record.load(path)
                    if record.status == "RUNNING":
                        end = max([record.start, *(ms for _, _, ms, _ in record.metrics)])
                        record.status, record.end = "KILLED", end
                        record.save(path)
                    mlflow.push(record, path.parent, root)
                    delivered += 1
                locks.remove(path.parent)
        except Exception as error:
            failed.append(mlflow.one_line(error))
    if failed:
        raise InputError(
            f"MLflow does not take {len(failed)} runs, which still wait in {root / OUTBOX} "
            f"({delivered} delivered); the first of them: {failed[0]}"
        )
    return delivered, living
