"""A record → a run in MLflow, and the only import of mlflow.

In: a record and the folder of its files.
Out: an MLflow run equal to it. Pushing a record twice changes nothing: a run is found again by
its key, a metric by its timestamp.
Not supported: logging that blocks. Every wait is bounded, and a refusal is an exception at once.
"""

import json
import os
import re
import shlex
import sqlite3
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from storyflower.common import errors, locks
from storyflower.tracking.record import KEY_TAG, OUTBOX, Record

LOCKED_SECONDS = 2  # how long a push waits for another program's transaction in a local store
TURN_SECONDS = 60  # and for another of our processes, which may be making the database
BATCH = 100  # MLflow's limit of params or tags in one request; metrics may be 1000


def push(record: Record, folder: Path, root: Path) -> None:
    """Make the MLflow run equal to the record; doing it again changes nothing."""
    client, experiment_id = connect(record.experiment, root)
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    runs = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{record.key}'")
    runs.sort(key=lambda run: run.info.run_id)
    # A server that hung may carry out a request that was given up and redone.
    for twin in runs[1:]:
        client.delete_run(twin.info.run_id)
    if runs:
        run_id, shown = runs[0].info.run_id, runs[0].data.metrics
        ended = record.status == "RUNNING" != runs[0].info.status
        if ended or runs[0].info.run_name != record.name:  # it goes on, under a new name
            client.update_run(run_id, status="RUNNING" if ended else None, name=record.name)
    else:
        tags = {KEY_TAG: record.key}
        run = client.create_run(experiment_id, record.start, tags, run_name=record.name)
        run_id, shown = run.info.run_id, {}
    if not (runs and runs[0].inputs.dataset_inputs):
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
    held = nullcontext() if server else locks.acquire_free(lock, TURN_SECONDS)
    if held is None:
        raise OSError(f"another process has held {lock} for {TURN_SECONDS} s")
    with held:
        check_database(uri)
        client = MlflowClient(uri)
        known = client.get_experiment_by_name(experiment)
        if known is not None and known.lifecycle_stage == "deleted":
            raise OSError(
                f"its experiment {experiment!r} was deleted; restore it: MLFLOW_TRACKING_URI="
                f"{shlex.quote(uri)} mlflow experiments restore --experiment-id "
                f"{known.experiment_id}"
            )
        if known is not None:
            return client, known.experiment_id
        # MLflow's default is relative to a working folder that DVC may delete.
        artifacts = (root / "mlartifacts" / experiment).as_uri() if not server else None
        try:
            return client, client.create_experiment(experiment, artifact_location=artifacts)
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
        database = root / path  # an absolute path stays as it is
        # In an address ? begins the settings, and MLflow's migrations take % for one of theirs.
        # The path from here, which is below the root, has neither.
        odd = set("?%") & set(str(root))
        return f"{scheme}:///{os.path.relpath(database) if odd else database}"
    path = uri.removeprefix("file:")
    absolute = path.startswith("/") or ":" in path or path == "databricks"
    return uri if absolute else str(root / path)


def is_local(uri: str) -> bool:
    """Whether runs go to files on this machine rather than to a server, of MLflow or a database."""
    return uri.startswith(("sqlite", "file:")) or ("://" not in uri and uri != "databricks")


def one_line(error: Exception) -> str:
    """The error on one line, without user and password of an address.

    It is cut, unless MLflow says what to do: of a database of another version it does, at its end.
    """
    text = re.sub(r"//[^/\s]*@", "//", str(error))
    text = text[max(text.find("Caused by "), 0) :]  # before it, the HTTP client quotes itself
    limit = 2000 if "mlflow db upgrade" in text or isinstance(error, OSError) else 200
    return errors.one_line(text or type(error).__name__, limit)
