"""The mirror of a run in MLflow, and the only import of mlflow.

Enters: params, metrics with their timestamps, pictures. Leaves: one MLflow run. The project's own
files are the truth; everything logged is first written to a record in an outbox folder of the main
repository, and a background thread then makes the MLflow run equal to the record. Pushing a record
twice changes nothing (a run is found again by its key, a metric by its timestamp), so a record that
could not be delivered is simply pushed again later: `python -m storyflower.tracking sync`. A lock
beside the record, held while its run lives, tells sync which runs were killed, and keeps two
processes from pushing one record at the same time.

Given up: logging that blocks. An MLflow that is down costs a line of output, never a training.
"""

import hashlib
import json
import math
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import filelock

from storyflower.documents import replacing, write_json
from storyflower.errors import InputError, exit_with_line

OUTBOX = Path(".storyflower") / "outbox"  # under the main repository's root
KEY_TAG = "storyflower.key"
CLOSE_SECONDS = 8  # how long the end of a stage may wait for a server
LATE_CLOSE_SECONDS = 1  # and where the stage before it has waited in vain
LOCAL_CLOSE_SECONDS = 300  # and for a local store without an error: only a busy machine is slow
LOCKED_SECONDS = 2  # how long a push waits for another program's transaction in a local store
TURN_SECONDS = 60  # and for another of our processes, which may be making the database
RETRY_SECONDS = 0.5  # between two tries at the end of a stage
LONGEST_PAUSE = 30  # seconds between two pushes during a training
BATCH = 100  # MLflow's limit of params or tags in one request; metrics may be 1000
LIBRARIES = ("torch", "transformers", "sentencepiece", "numpy", "mlflow", "dvc")


@dataclass
class Record:
    """All that MLflow shall know of a run. Times are milliseconds since 1970."""

    key: str
    experiment: str
    name: str
    start: int
    params: dict[str, str]
    tags: dict[str, str]
    datasets: dict[str, str]  # name → digest
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)  # key, value, ms, step
    results: list[tuple[str, float, int]] = field(default_factory=list)  # the same without steps
    artifacts: list[str] = field(default_factory=list)  # file names in the outbox folder
    status: str = "RUNNING"  # or FINISHED, FAILED, KILLED
    end: int | None = None

    @classmethod
    def load(cls, path: Path) -> "Record":
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        """Write the record; a reader sees the old or the new one, never half."""
        write_json(asdict(self), path)


def main_root() -> Path:
    """The main repository, whatever folder an experiment runs in (DVC sets DVC_ROOT)."""
    return Path(os.environ.get("DVC_ROOT") or os.getcwd()).resolve()


def new_record(
    *, experiment: str, params: dict[str, Any], tags: dict[str, str], dataset: Path
) -> Record:
    """A record for a run that starts now; `dataset` is the table whose digest is logged."""
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or git_commit()
    dvc_name = os.environ.get("DVC_EXP_NAME")
    with dataset.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    known = {
        "git_commit": commit,
        "dvc_experiment": dvc_name,
        "dataset_digest": digest,
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "stages.train",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": os.environ.get("USER"),
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
        **tags,
    }
    return Record(
        key=uuid.uuid4().hex,
        experiment=experiment,
        name=dvc_name or f"repro-{(commit or 'nogit')[:7]}",
        start=milliseconds(),
        params={key: str(value) for key, value in params.items()},
        tags={key: value for key, value in known.items() if value},
        datasets={experiment: digest},
    )


def continued(new: Record, saved: dict[str, Any] | None) -> Record:
    """The record of a run that goes on: key, params and figures of the saved one, the rest new.

    The name and the tags are new because DVC names an experiment anew at each call.
    """
    if saved is None:
        return new
    record = Record(**saved)
    if not re.fullmatch("[0-9a-f]{32}", record.key):  # it becomes the name of a folder
        raise InputError(f"checkpoint: {record.key!r} is not the key of a run; remove its folder")
    waiting = main_root() / OUTBOX / record.key / "record.json"
    if waiting.exists():  # written at each change, so newer than the checkpoint
        record = Record.load(waiting)
    record.name, record.tags = new.name, new.tags
    record.status, record.end = "RUNNING", None
    return record


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
            busy = is_local(tracking_uri(self.root)) and not self._error
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
                "When it is back: python -m storyflower.tracking sync",
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
                    push(Record.load(self.folder / "record.json"), self.folder, self.root)
                    self._delivered, self._error = changes, ""
            except Exception as error:  # whatever it is, it must not touch the training
                self._error = one_line(error)
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


def push(record: Record, folder: Path, root: Path) -> None:
    """Make the MLflow run equal to the record; doing it again changes nothing."""
    client, experiment_id = connect(record.experiment, root)
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{record.key}'")
    found.sort(key=lambda run: run.info.run_id)
    for twin in found[
        1:
    ]:  # a server that hung may carry out a request that was given up and redone
        client.delete_run(twin.info.run_id)
    if found:
        run_id, shown = found[0].info.run_id, found[0].data.metrics
        ended = record.status == "RUNNING" != found[0].info.status
        if ended or found[0].info.run_name != record.name:  # it goes on, under a new name
            client.update_run(run_id, status="RUNNING" if ended else None, name=record.name)
    else:
        tags = {KEY_TAG: record.key}
        run = client.create_run(experiment_id, record.start, tags, run_name=record.name)
        run_id, shown = run.info.run_id, {}
    if not (found and found[0].inputs.dataset_inputs):
        context = [InputTag("mlflow.data.context", "training")]
        inputs = [
            DatasetInput(Dataset(name, digest, "local", json.dumps({"corpus": name})), context)
            for name, digest in record.datasets.items()
        ]
        client.log_inputs(run_id, inputs)
    params = [Param(*item) for item in record.params.items()]
    tags = [RunTag(*item) for item in record.tags.items()]
    results = [(*item, 0) for item in record.results if shown.get(item[0]) != item[1]]
    metrics = [Metric(*item) for item in record.metrics + results]
    batches = max(len(params), len(tags), len(metrics))
    for start in range(0, batches, BATCH):
        piece = slice(start, start + BATCH)
        client.log_batch(run_id, metrics=metrics[piece], params=params[piece], tags=tags[piece])
    for name in record.artifacts:
        client.log_artifact(run_id, str(folder / name))
    if record.status != "RUNNING":
        client.set_terminated(run_id, record.status, record.end)
    # Some proxies answer every request with an empty success.
    if client.get_run(run_id).data.tags.get(KEY_TAG) != record.key:
        raise OSError("the server takes the run and does not have it")


def connect(experiment: str, root: Path) -> tuple[Any, str]:
    """An MLflow client and the experiment's id; both are made where they are missing."""
    # MLflow's own defaults retry for minutes, which can make a run twice, and call home.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # we say what is wrong, in one line
    import logging

    # A new database reports each of its migrations.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(root)
    server = uri.startswith(("http://", "https://", "databricks"))
    # Of several processes on a new database all but one fail in its migrations.
    lock = root / OUTBOX.parent / "mlflow.lock"
    with nullcontext() if server else filelock.FileLock(lock, timeout=TURN_SECONDS):
        check_database(uri)
        client = MlflowClient(uri)
        known = client.get_experiment_by_name(experiment)
        if known is not None:
            return client, known.experiment_id
        # MLflow's default is relative to a working folder that DVC may delete.
        place = (root / "mlartifacts" / experiment).as_uri() if not server else None
        try:
            return client, client.create_experiment(experiment, artifact_location=place)
        except MlflowException:  # another host made it in the meantime
            known = client.get_experiment_by_name(experiment)
            if known is None:
                raise
            return client, known.experiment_id


def check_database(uri: str) -> None:
    """Raise sqlite3.Error at once where MLflow would wait 20 s or more: locked, damaged, read-only.

    Does nothing for other stores and for a database that MLflow has yet to make.
    """
    scheme, _, path = uri.partition(":///")
    if scheme.startswith("sqlite") and Path(path).exists():
        with closing(sqlite3.connect(path, timeout=LOCKED_SECONDS)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()


def tracking_uri(root: Path) -> str:
    """Where runs go: MLFLOW_TRACKING_URI, or a database in the main repository.

    A relative path is one below the main repository's root: DVC deletes the folder of an experiment
    that ran with --temp.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, separator, path = uri.partition(":///")
    if scheme.startswith("sqlite") and separator:
        return f"{scheme}:///{root / path}"  # an absolute path stays as it is
    path = uri.removeprefix("file:")
    absolute = path.startswith("/") or ":" in path or path == "databricks"
    return uri if absolute else str(root / path)


def is_local(uri: str) -> bool:
    """Whether runs go to files on this machine rather than to a server, of MLflow or a database."""
    return uri.startswith(("sqlite", "file:")) or ("://" not in uri and uri != "databricks")


def one_line(error: Exception) -> str:
    """The error in at most 200 characters, without user and password of an address."""
    text = re.sub(r"//[^/\s]*@", "//", " ".join(str(error).split()))
    text = text[max(text.find("Caused by "), 0) :]  # before it, the HTTP client quotes itself
    return text[:200] or type(error).__name__


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
                    push(record, path.parent, root)
                    delivered += 1
                clear(path.parent)
        except filelock.Timeout:
            living += 1
        except Exception as error:
            failed.append(one_line(error))
    if failed:
        raise InputError(
            f"MLflow does not take {len(failed)} runs, which still wait in {root / OUTBOX} "
            f"({delivered} delivered); the first of them: {failed[0]}"
        )
    return delivered, living


def git_commit() -> str | None:
    """The checked-out commit; None outside a git repository."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def milliseconds() -> int:
    return int(time.time() * 1000)


def main() -> None:
    """python -m storyflower.tracking sync"""
    if sys.argv[1:] != ["sync"]:
        raise InputError("usage: python -m storyflower.tracking sync")
    delivered, living = sync(main_root())
    print(f"{delivered} runs delivered to MLflow" + f", {living} still under way" * bool(living))


if __name__ == "__main__":
    exit_with_line(main)
