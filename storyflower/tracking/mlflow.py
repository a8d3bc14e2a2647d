"""A record → a run in MLflow. Of the pipeline, only this module imports mlflow.

In: a record and the folder of its files.
Out: an MLflow run equal to the record. Pushing a record twice changes nothing: a run is recognized
by its key, a metric by its timestamp.
Not supported: logging that blocks. Every wait has a limit, and a refusal raises at once.
"""

import json
import os
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from storyflower.common import errors, locks
from storyflower.tracking.record import KEY_TAG, OUTBOX, Record

LOCKED_SECONDS = 2  # how long a push waits for another program's transaction in a local store
TURN_SECONDS = 60  # how long for another of our processes, which may be creating the database
HALF_MADE = "_alembic_tmp_*"  # tables that a migration makes and renames at its end
BATCH = 100  # MLflow's limit of params or tags per request; for metrics it is 1000


def push(record: Record, folder: Path, root: Path) -> None:
    """Make the MLflow run equal to the record; repeating this changes nothing."""
    client, experiment_id = connect(record.experiment, root)
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    runs = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{record.key}'")
    runs.sort(key=lambda run: run.info.run_id)
    # A slow server may still execute a request that timed out and was sent again.
    for twin in runs[1:]:
        client.delete_run(twin.info.run_id)
    if runs:
        run_id, shown = runs[0].info.run_id, runs[0].data.metrics
        ended = record.status == "RUNNING" != runs[0].info.status
        if ended or runs[0].info.run_name != record.name:  # the run resumes, or has a new name
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
    # Some proxies answer every request with an empty success, so check that the run is there.
    if client.get_run(run_id).data.tags.get(KEY_TAG) != record.key:
        raise OSError("the server takes the run and does not have it")


def connect(experiment: str, root: Path) -> tuple[Any, str]:
    """An MLflow client and the experiment's id; creates the experiment if it is missing."""
    set_up()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(root)
    server = uri.startswith(("http://", "https://", "databricks"))
    # If several processes create the same database, all but one fail in its migrations.
    lock = root / OUTBOX.parent / "mlflow.lock"
    held = nullcontext() if server else locks.acquire_free(lock, TURN_SECONDS)
    if held is None:
        raise OSError(f"another process has held {lock} for {TURN_SECONDS} s")
    with held:
        check_database(uri)
        make_database(uri)
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
        # MLflow's default is relative to the working folder, which DVC may delete.
        artifacts = (root / "mlartifacts" / experiment).as_uri() if not server else None
        try:
            return client, client.create_experiment(experiment, artifact_location=artifacts)
        except MlflowException:  # another host may have just created it
            known = client.get_experiment_by_name(experiment)
            if known is None:
                raise
            return client, known.experiment_id


def set_up() -> None:
    """Give MLflow short waits and no words of its own; to be called before it is imported."""
    # By default, MLflow retries for minutes, which can create a run twice, and sends telemetry.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # we report errors in one line
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import logging

    # Creating a database logs every migration.
    logging.getLogger("alembic").setLevel(logging.WARNING)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """An InputError about `what` for an MLflow that does not answer or refuses."""
    set_up()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError, sqlite3.Error) as error:
        raise errors.InputError(f"{what}: {one_line(error)}") from None


def client_of_store(root: Path) -> Any:
    """An MLflow client of a store that is there already; raises OSError if a database is not."""
    set_up()
    from mlflow import MlflowClient

    uri = tracking_uri(root)
    path = database_file(uri)
    if path and not path.exists():
        raise FileNotFoundError(f"{path}: no such database; set MLFLOW_TRACKING_URI")
    check_database(uri)
    return MlflowClient(uri)


def check_database(uri: str) -> None:
    """Raise sqlite3.Error for a locked, damaged or read-only database, or a half-made one.

    MLflow itself would wait 20 s or more, and of a migration that was stopped half-way it would
    only say that a table is there already. Does nothing for other stores, or for a database that
    does not exist yet.
    """
    path = database_file(uri)
    if path and path.exists():
        with closing(sqlite3.connect(path, timeout=LOCKED_SECONDS)) as database:
            database.execute("BEGIN IMMEDIATE")
            left = database.execute("SELECT name FROM sqlite_master WHERE name GLOB ?", [HALF_MADE])
            if left.fetchone():
                raise sqlite3.DatabaseError(
                    f"{path}: MLflow was stopped while it made or upgraded this database; remove "
                    "it if it was new, or restore a copy of it, then: python -m storyflower sync"
                )
            database.rollback()


def make_database(uri: str) -> None:
    """Make a local database that does not exist yet, whole or not at all.

    MLflow makes it by its migrations, one after the other, which takes a second: a kill among them
    would leave one that MLflow cannot open.
    """
    path = database_file(uri)
    if path is None or path.exists() or path.is_symlink():
        return
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH, sqlalchemy_store

    # Repositories may share a database, and each has a lock of its own.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    try:
        sqlite3.connect(part).close()  # raises at once where MLflow would try for minutes
        whole = f"{uri.partition(':///')[0]}:///{part}"
        store = sqlalchemy_store.SqlAlchemyStore(whole, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
        store.engine.dispose()  # closes the file
        try:
            os.link(part, path)  # never in the place of one that another has made meanwhile
        except FileExistsError:
            return
        except OSError:  # a file system without links
            part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def database_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for another store, or where its path is written otherwise.

    In a URI, ? starts the options, and %20 is a blank.
    """
    scheme, separator, path = uri.partition(":///")
    plain = path and path != ":memory:" and not set("?%") & set(path)
    return Path(path) if scheme.startswith("sqlite") and separator and plain else None


def tracking_uri(root: Path) -> str:
    """Where runs are stored: MLFLOW_TRACKING_URI, or a database in the main repository.

    A relative path starts at the main repository's root: DVC deletes the folder of an experiment
    that ran with --temp.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, separator, path = uri.partition(":///")
    if scheme.startswith("sqlite") and separator:
        database = root / path  # an absolute path stays as it is
        # In a URI, ? starts the options, and MLflow's migrations interpret %. If the root's path
        # has one of them, use the path relative to the current folder, which has neither.
        odd = set("?%") & set(str(root))
        return f"{scheme}:///{os.path.relpath(database) if odd else database}"
    path = uri.removeprefix("file:")
    absolute = path.startswith("/") or ":" in path or path == "databricks"
    return uri if absolute else str(root / path)


def is_local(uri: str) -> bool:
    """Whether runs go to files on this machine, not to an MLflow or database server."""
    return uri.startswith(("sqlite", "file:")) or ("://" not in uri and uri != "databricks")


def shown(uri: str) -> str:
    """A URI without its user and password."""
    return re.sub(r"//[^/\s]*@", "//", uri)


def one_line(error: Exception) -> str:
    """The error on one line, without the user and password in a URI.

    It is shortened, except if the useful part is long: MLflow's error for a database of another
    version says at its end what to do.
    """
    text = shown(str(error))
    text = text[max(text.find("Caused by "), 0) :]  # the HTTP client's own words come before it
    limit = 2000 if "mlflow db upgrade" in text or isinstance(error, OSError) else 200
    return errors.one_line(text or type(error).__name__, limit)
