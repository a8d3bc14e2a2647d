"""The mirror of a run in MLflow, and the only import of mlflow.

Enters: params, metrics with their timestamps, pictures. Leaves: one MLflow run. The project's own
files are the truth; everything logged is first written to a record in an outbox folder of the main
repository, and a background thread then makes the MLflow run equal to the record. Pushing a record
twice changes nothing (a run is found again by its key, a metric by its timestamp), so a record that
could not be delivered is simply pushed again later: `python -m storyflower.tracking sync`.

Given up: logging that blocks. An MLflow that is down costs a line of output, never a training.
"""

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import uuid
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from storyflower.errors import InputError, exit_with_line

OUTBOX = Path(".storyflower") / "outbox"  # under the main repository's root
KEY_TAG = "storyflower.key"
CLOSE_SECONDS = 8  # how long the end of a stage may wait for a server
LOCAL_CLOSE_SECONDS = 60  # and for a local store, which only a busy machine makes slow
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
    artifacts: list[str] = field(default_factory=list)  # file names in the outbox folder
    status: str = "RUNNING"  # or FINISHED, FAILED
    end: int | None = None

    @classmethod
    def load(cls, path: Path) -> "Record":
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        """Write the record; a reader sees the old or the new one, never half."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, path)


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


class Run:
    """One run, logged to the outbox at once and to MLflow when it answers."""

    def __init__(self, record: Record, root: Path | None = None):
        self.record = record
        self.root = root or main_root()
        self.folder = self.root / OUTBOX / record.key
        self._changed = threading.Event()
        self._closing = False
        self._delivered = 0  # how many changes of the record MLflow has seen
        self._changes = 0
        self._error = ""
        self._save()
        # A daemon: a server that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._mirror, daemon=True)
        self._thread.start()

    def log(self, values: dict[str, float], step: int = 0) -> None:
        """Log metrics at a step. MLflow has no place for NaN and infinity: they are left out."""
        now = milliseconds()
        for key, value in values.items():
            if math.isfinite(value):
                self.record.metrics.append((key, float(value), now, step))
        self._save()

    def attach(self, *paths: Path) -> None:
        """Add files to the run; they are copied, so the originals may go."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            shutil.copyfile(path, self.folder / path.name)
            if path.name not in self.record.artifacts:
                self.record.artifacts.append(path.name)
        self._save()

    def close(self, status: str = "FINISHED") -> None:
        """End the run and wait a few seconds for MLflow; say so if it did not answer in time."""
        self.record.status, self.record.end = status, milliseconds()
        self._closing = True
        self._save()
        wait = CLOSE_SECONDS if is_remote(tracking_uri(self.root)) else LOCAL_CLOSE_SECONDS
        self._thread.join(wait)
        if self._delivered == self._changes:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        reason = self._error or f"no answer within {wait} s"
        print(
            f"MLflow has not got this run ({reason}); nothing is lost. When it is back: "
            "python -m storyflower.tracking sync",
            file=sys.stderr,
        )

    def _save(self) -> None:
        self.record.save(self.folder / "record.json")
        self._changes += 1
        self._changed.set()

    def _mirror(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            closing, changes = self._closing, self._changes
            try:
                push(Record.load(self.folder / "record.json"), self.folder, self.root)
                self._delivered, self._error = changes, ""
            except Exception as error:  # whatever it is, it must not touch the training
                self._error = " ".join(str(error).split())[:200] or type(error).__name__
            if closing:
                return


def push(record: Record, folder: Path, root: Path) -> None:
    """Make the MLflow run equal to the record; doing it again changes nothing."""
    client, experiment_id = connect(record.experiment, root)
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{record.key}'", max_results=1)
    if found:
        run_id = found[0].info.run_id
    else:
        tags = {KEY_TAG: record.key}
        run = client.create_run(experiment_id, record.start, tags, run_name=record.name)
        run_id = run.info.run_id
        context = [InputTag("mlflow.data.context", "training")]
        inputs = [
            DatasetInput(Dataset(name, digest, "local", json.dumps({"corpus": name})), context)
            for name, digest in record.datasets.items()
        ]
        client.log_inputs(run_id, inputs)
    params = [Param(*item) for item in record.params.items()]
    tags = [RunTag(*item) for item in record.tags.items()]
    metrics = [Metric(*item) for item in record.metrics]
    batches = max(len(params), len(tags), len(metrics))
    for start in range(0, batches, BATCH):
        piece = slice(start, start + BATCH)
        client.log_batch(run_id, metrics=metrics[piece], params=params[piece], tags=tags[piece])
    for name in record.artifacts:
        client.log_artifact(run_id, str(folder / name))
    if record.status != "RUNNING":
        client.set_terminated(run_id, record.status, record.end)


def connect(experiment: str, root: Path) -> tuple[Any, str]:
    """An MLflow client and the experiment's id; both are made where they are missing."""
    # MLflow's own defaults retry for minutes and call home.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    import logging

    import filelock

    # A new database reports each of its migrations.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(root)
    local = not is_remote(uri)
    # Of several processes on a new database all but one fail in its migrations.
    lock = root / OUTBOX.parent / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock) if local else nullcontext():
        client = MlflowClient(uri)
        known = client.get_experiment_by_name(experiment)
        if known is not None:
            return client, known.experiment_id
        # MLflow's default is relative to a working folder that DVC may delete.
        place = (root / "mlartifacts" / experiment).as_uri() if local else None
        try:
            return client, client.create_experiment(experiment, artifact_location=place)
        except MlflowException:  # another host made it in the meantime
            known = client.get_experiment_by_name(experiment)
            if known is None:
                raise
            return client, known.experiment_id


def tracking_uri(root: Path) -> str:
    """Where runs go: MLFLOW_TRACKING_URI, or a database in the main repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


def is_remote(uri: str) -> bool:
    """Whether a server answers, rather than a file on this machine."""
    return uri.startswith(("http://", "https://", "databricks"))


def sync(root: Path) -> tuple[int, int]:
    """Push every record of the outbox; return (delivered, still waiting)."""
    waiting = sorted((root / OUTBOX).glob("*/record.json"))
    delivered = 0
    for path in waiting:
        record = Record.load(path)
        try:
            push(record, path.parent, root)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"MLflow does not take the run {record.name} ({reason}); "
                f"{len(waiting) - delivered} runs still wait in {root / OUTBOX}"
            ) from None
        delivered += 1
        if record.status != "RUNNING":
            shutil.rmtree(path.parent)
    return delivered, len(waiting) - delivered


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
    delivered, _ = sync(main_root())
    print(f"{delivered} runs delivered to MLflow")


if __name__ == "__main__":
    exit_with_line(main)
