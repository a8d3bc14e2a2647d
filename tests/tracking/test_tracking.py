"""Runs reach MLflow once and whole, whatever MLflow or the process does meanwhile."""

import json
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from storyflower.common import locks
from storyflower.common.errors import InputError
from storyflower.tracking import mlflow
from storyflower.tracking import record as record_module
from storyflower.tracking import run as run_module
from storyflower.tracking.record import OUTBOX, Record, continued, new_record
from storyflower.tracking.run import Run, sync
from tests.support import ROOT, command

# A process with a run that is open; it never imports mlflow, which takes seconds.
OPEN_RUN = """
import sys, time
from pathlib import Path
from storyflower.common import errors
from storyflower.tracking import mlflow, record as record_module, run as run_module

def down(*_):
    raise OSError("MLflow is down")

def main():
    with run_module.Run(record_module.Record.load(Path(sys.argv[1])), Path(sys.argv[2])) as run:
        run.log({"loss": 0.5}, 1)
        print("open", flush=True)
        time.sleep(60)

mlflow.push = down
run_module.CLOSE_SECONDS = 1
errors.exit_with_line(main)
"""
WHOLE_RUN = """
import sys
from pathlib import Path
from storyflower.tracking import record as record_module, run as run_module

with run_module.Run(record_module.Record.load(Path(sys.argv[1])), Path(sys.argv[2])) as run:
    for epoch in (1, 2, 3):
        run.log({"loss": 1 / epoch}, epoch)
    run.attach(Path(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that itself runs inside an experiment must not join it."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module", autouse=True)
def databases_that_do_not_wait_for_the_disk() -> Iterator[None]:
    """MLflow's migrations commit some hundred times; no test here cuts the power."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def hurry(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hurry)
    yield
    event.remove(Engine, "connect", hurry)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A main repository's root whose MLflow database is made once, which takes seconds."""
    root = tmp_path_factory.mktemp("store")
    mlflow.connect("sample", root)
    return root


@pytest.fixture
def record(tmp_path: Path) -> Record:
    table = tmp_path / "dialogues.parquet"
    table.write_bytes(b"a table")
    return new_record(
        experiment="sample", params={"seed": 1}, tags={"device": "cpu"}, dataset=table
    )


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """MLflow replaced by a list of the records it was given."""
    records: list[Record] = []
    monkeypatch.setattr(mlflow, "push", lambda record, *_: records.append(record))
    return records


def outbox(root: Path) -> list[str]:
    return sorted(path.name for path in (root / OUTBOX).iterdir())


class Mirrored:
    """What MLflow shows of the one run that has a record's key."""

    def __init__(self, uri: str, key: str):
        from mlflow import MlflowClient

        self.client = MlflowClient(uri)
        experiment = self.client.get_experiment_by_name("sample")
        (self.run,) = self.client.search_runs(
            [experiment.experiment_id], f"tags.`{record_module.KEY_TAG}` = '{key}'"
        )
        self.id, self.status = self.run.info.run_id, self.run.info.status

    def history(self, name: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in self.client.get_metric_history(self.id, name)]

    def artifacts(self) -> list[str]:
        return sorted(item.path for item in self.client.list_artifacts(self.id))

    def everything(self) -> dict[str, Any]:
        metrics = {name: self.history(name) for name in self.run.data.metrics}
        inputs = [str(item) for item in self.run.inputs.dataset_inputs]
        return {**dict(self.run.info), **self.run.data.to_dictionary(), "history": metrics} | {
            "artifacts": self.artifacts(),
            "inputs": inputs,
        }


def shown(root: Path, record: Record) -> Mirrored:
    return Mirrored(f"sqlite:///{root / 'mlflow.db'}", record.key)


def python(
    code: str, record: Record, root: Path, *more: str, **settings: str
) -> subprocess.Popen[str]:
    """Start a process of the project with a record to open."""
    path = root / f"{record.key}.json"
    record.save(path)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(root), *more],
        cwd=ROOT,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_arrives_with_all_that_was_logged(store: Path, record: Record) -> None:
    picture = store / "picture.png"
    picture.write_bytes(b"png")
    with Run(record, store) as run:
        run.log({"loss": 0.9, "test_loss": math.nan}, 1)
        run.log({"loss": 0.5, "test_loss": math.inf}, 2)
        run.log_results({"final_accuracy": 0.75, "final_loss": math.nan})
        run.attach(picture)
        picture.unlink()  # the originals may go
    seen = shown(store, record)
    assert seen.status == "FINISHED"
    assert seen.run.info.start_time == record.start
    assert seen.run.info.end_time == record.end
    assert seen.run.data.params == {"seed": "1"}
    assert seen.run.data.tags["device"] == "cpu"
    assert seen.history("loss") == [(1, 0.9), (2, 0.5)]
    assert seen.run.data.metrics == {"loss": 0.5, "final_accuracy": 0.75}  # no NaN, no infinity
    assert seen.artifacts() == ["picture.png"]
    (used,) = seen.run.inputs.dataset_inputs
    assert used.dataset.name == "sample"
    assert used.dataset.digest == seen.run.data.tags["dataset_digest"]
    assert outbox(store) == []


def test_delivering_a_record_again_changes_nothing(
    store: Path, record: Record, tmp_path: Path
) -> None:
    run = Run(record, store)
    run.log({"loss": 0.9}, 1)
    run.log_results({"final_accuracy": 0.75})
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    run.attach(tmp_path / "a.txt")
    run.close()
    first = shown(store, record).everything()
    shutil.copytree(tmp_path, store / OUTBOX / record.key)
    record.save(store / OUTBOX / record.key / "record.json")
    assert sync(store) == (1, 0)
    assert shown(store, record).everything() == first
    assert sync(store) == (0, 0)
    assert outbox(store) == []


def test_a_second_evaluation_replaces_the_results_of_the_first(store: Path, record: Record) -> None:
    Run(record, store).close()
    record.save(store / "run.json")
    lengths = []
    for accuracy in (0.75, 0.75, 0.5):
        with Run(Record.load(store / "run.json"), store) as run:
            run.log_results({"final_accuracy": accuracy})
        seen = shown(store, record)
        assert seen.run.data.metrics["final_accuracy"] == accuracy
        assert seen.run.info.end_time == record.end  # the training's
        lengths.append(len(seen.history("final_accuracy")))
    assert lengths == [1, 1, 2]


def test_what_failed_half_way_is_delivered_whole_before_the_end(
    store: Path, record: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from mlflow import MlflowClient

    real, failures = MlflowClient.log_inputs, [OSError("once"), OSError("twice")]

    def log_inputs(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        real(*arguments)

    monkeypatch.setattr(MlflowClient, "log_inputs", log_inputs)
    with Run(record, store) as run:
        run.log({"loss": 0.5}, 1)
    seen = shown(store, record)
    assert not failures
    assert seen.status == "FINISHED" and seen.history("loss") == [(1, 0.5)]
    assert len(seen.run.inputs.dataset_inputs) == 1
    assert outbox(store) == [] and capsys.readouterr().err == ""


def test_the_last_state_is_pushed_though_a_push_is_under_way(
    tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[tuple[str, int]] = []
    under_way = threading.Lock()

    def slow_push(record: Record, *_: object) -> None:
        assert under_way.acquire(blocking=False)  # never two at once
        time.sleep(0.1)
        states.append((record.status, len(record.metrics)))
        under_way.release()

    monkeypatch.setattr(mlflow, "push", slow_push)
    monkeypatch.setattr(run_module, "LONGEST_PAUSE", 0)
    run = Run(record, tmp_path)
    for epoch in range(1, 31):
        run.log({"loss": 0.5}, epoch)
        time.sleep(0.01)
    run.close()
    assert 2 < len(states) < 10
    assert states[-1] == ("FINISHED", 30)
    assert outbox(tmp_path) == []


def test_after_a_failure_only_the_end_pushes(
    tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushes: list[int] = []

    def push(record: Record, *_: object) -> None:
        pushes.append(len(record.metrics))
        if len(pushes) == 1:
            raise OSError("refused")

    monkeypatch.setattr(mlflow, "push", push)
    monkeypatch.setattr(run_module, "LONGEST_PAUSE", 0)
    run = Run(record, tmp_path)
    for epoch in range(1, 6):
        time.sleep(0.02)
        run.log({"loss": 0.5}, epoch)
    assert pushes == [0]
    run.close()
    assert pushes == [0, 5]
    assert outbox(tmp_path) == []


def test_a_push_takes_little_of_the_trainings_time(
    tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushes: list[int] = []

    def push(record: Record, *_: object) -> None:
        time.sleep(0.05)
        pushes.append(len(record.metrics))

    monkeypatch.setattr(mlflow, "push", push)
    run = Run(record, tmp_path)
    for epoch in range(1, 31):
        run.log({"loss": 0.5}, epoch)
        time.sleep(0.01)
    run.close()
    assert len(pushes) <= 3  # and not one an epoch
    assert pushes[-1] == 30


def test_mlflow_that_is_down_costs_one_line_and_nothing_is_lost(
    tmp_path: Path,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def down(*_: object) -> None:
        address = "http://minsu:" + "s3cret" * 40 + "@mlflow.example.org"
        raise OSError(f"API request to {address}\nfailed")

    monkeypatch.setattr(mlflow, "push", down)
    monkeypatch.setattr(run_module, "CLOSE_SECONDS", 1)
    run = Run(record, tmp_path)
    run.log({"loss": 0.5}, 1)
    start = time.monotonic()
    run.close()
    assert time.monotonic() - start < 1.5
    (line,) = capsys.readouterr().err.splitlines()
    assert "python -m storyflower sync" in line
    assert "mlflow.example.org failed" in line and "minsu" not in line and "s3cret" not in line

    with pytest.raises(InputError, match=r"1 runs, which still wait") as error:
        sync(tmp_path)
    assert "s3cret" not in str(error.value)

    pushed: list[Record] = []
    monkeypatch.setattr(mlflow, "push", lambda record, *_: pushed.append(record))
    assert sync(tmp_path) == (1, 0)
    assert sync(tmp_path) == (0, 0)
    assert [(r.status, len(r.metrics)) for r in pushed] == [("FINISHED", 1)]
    assert outbox(tmp_path) == []


def test_a_record_that_is_not_taken_does_not_hold_up_the_others(
    tmp_path: Path, record: Record, pushed: list[Record]
) -> None:
    record.status = "FINISHED"
    record.save(tmp_path / OUTBOX / record.key / "record.json")
    (tmp_path / OUTBOX / "0").mkdir()
    (tmp_path / OUTBOX / "0" / "record.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"1 runs, .*\(1 delivered\)"):
        sync(tmp_path)
    assert [r.key for r in pushed] == [record.key]
    assert outbox(tmp_path) == ["0", "0.lock", "0.pid"]


@pytest.mark.parametrize("answers", [True, False])
def test_a_server_that_is_silent_or_gone_never_blocks(
    answers: bool,
    tmp_path: Path,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(run_module, "CLOSE_SECONDS", 0.7)
    with socket.create_server(("127.0.0.1", 0)) as hole:  # takes connections, says nothing
        port = hole.getsockname()[1]
        if not answers:
            hole.close()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://minsu:s3cret@127.0.0.1:{port}")
        start = time.monotonic()
        run = Run(record, tmp_path)
        for epoch in range(20):
            run.log({"loss": 0.5}, epoch)
        assert time.monotonic() - start < 0.5
        run.close()
        assert time.monotonic() - start < 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "MLflow has not got this run" in line and "s3cret" not in line
    kept = Record.load(tmp_path / OUTBOX / record.key / "record.json")
    assert kept.status == "FINISHED" and len(kept.metrics) == 20


def test_the_stage_after_does_not_wait_for_the_server_once_more(
    tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object) -> None:
        raise OSError("refused")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(mlflow, "push", down)
    monkeypatch.setattr(run_module, "CLOSE_SECONDS", 1)
    monkeypatch.setattr(run_module, "LATE_CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(run_module, "RETRY_SECONDS", 0.05)
    waits = []
    for _ in ("train", "evaluate"):
        run = Run(record, tmp_path)
        start = time.monotonic()
        run.close()
        waits.append(time.monotonic() - start)
    assert waits[0] > 0.7 > waits[1]


def test_sync_leaves_a_living_run_alone_and_ends_a_killed_one(store: Path, record: Record) -> None:
    process = python(OPEN_RUN, record, store)
    assert process.stdout.readline() == "open\n", process.communicate()
    assert sync(store) == (0, 1)
    process.kill()
    process.communicate()
    before = Record.load(store / OUTBOX / record.key / "record.json")
    assert before.status == "RUNNING"
    assert sync(store) == (1, 0)
    seen = shown(store, record)
    assert seen.status == "KILLED"
    assert seen.run.info.end_time == before.metrics[-1][2]
    assert seen.history("loss") == [(1, 0.5)]
    assert outbox(store) == []


def test_a_stage_that_is_told_to_stop_ends_its_run(tmp_path: Path, record: Record) -> None:
    process = python(OPEN_RUN, record, tmp_path)
    assert process.stdout.readline() == "open\n", process.communicate()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # as `timeout` does: to the process and to its group
    _, err = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "Traceback" not in err
    kept = Record.load(tmp_path / OUTBOX / record.key / "record.json")
    assert kept.status == "KILLED" and kept.end >= kept.metrics[-1][2]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_run_ends_with_its_stage(
    error: type[BaseException], status: str, tmp_path: Path, record: Record, pushed: list[Record]
) -> None:
    with pytest.raises(error), Run(record, tmp_path):
        raise error
    assert pushed[-1].status == status
    # A stage that only adds to the run does not undo a training that went well.
    record.status = "FINISHED"
    with pytest.raises(error), Run(record, tmp_path):
        raise error
    assert pushed[-1].status == "FINISHED"
    assert outbox(tmp_path) == []


def test_two_processes_with_the_same_run_take_turns(
    tmp_path: Path, record: Record, pushed: list[Record], capsys: pytest.CaptureFixture
) -> None:
    held, done = threading.Event(), threading.Event()

    def other() -> None:
        with locks.acquire(locks.beside(tmp_path / OUTBOX / record.key), "pushes"):
            held.set()
            done.wait(0.8)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    Run(record, tmp_path).close()
    thread.join()
    assert "works on the run" in capsys.readouterr().err
    assert pushed[-1].status == "FINISHED"


def test_a_relative_database_lies_in_the_main_repository(
    store: Path, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, temporary = tmp_path / "main", tmp_path / "temporary"
    main.mkdir()
    temporary.mkdir()
    shutil.copyfile(store / "mlflow.db", main / "runs.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    monkeypatch.setenv("DVC_ROOT", str(main))
    monkeypatch.chdir(temporary)
    Run(record).close()
    assert Mirrored(f"sqlite:///{main / 'runs.db'}", record.key).status == "FINISHED"
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "used"),
    [
        ("", "sqlite:///{root}/mlflow.db"),
        ("sqlite:////srv/runs.db", "sqlite:////srv/runs.db"),
        ("sqlite+pysqlite:///a/runs.db", "sqlite+pysqlite:///{root}/a/runs.db"),
        ("mlruns", "{root}/mlruns"),
        ("file:mlruns", "{root}/mlruns"),
        ("file:///srv/mlruns", "file:///srv/mlruns"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("databricks", "databricks"),
    ],
)
def test_where_runs_go(
    uri: str, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert mlflow.tracking_uri(tmp_path) == used.format(root=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["what?", "100%41"])
def test_a_run_lands_in_its_repository_whatever_that_is_called(
    name: str, store: Path, record: Record, tmp_path: Path
) -> None:
    """In an address ? and % have a meaning; both folders in which DVC runs a stage."""
    root = tmp_path / "parent" / name
    experiment = root / ".dvc/tmp/exps/standalone/x"
    experiment.mkdir(parents=True)
    shutil.copyfile(store / "mlflow.db", root / "mlflow.db")
    with closing(sqlite3.connect(root / "mlflow.db")) as database, database:
        database.execute("UPDATE experiments SET artifact_location = ?", [(root / "a").as_uri()])
    code = f"import os; os.chdir({str(root)!r})\n{WHOLE_RUN}"
    # MLflow's import takes seconds, so one process is both, one after the other.
    code += f"os.chdir({str(experiment)!r}); sys.argv[1] = sys.argv[3]\n{WHOLE_RUN}"
    replace(record, key=32 * "b").save(tmp_path / "b.json")
    more = [str(tmp_path / "b.json")]
    process = python(code, replace(record, key=32 * "a"), root, *more, PYTHONPATH=str(ROOT))
    assert process.communicate() == ("", "") and process.returncode == 0
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        runs = database.execute("SELECT status FROM runs ORDER BY start_time").fetchall()
    assert runs[-2:] == [("FINISHED",), ("FINISHED",)]
    assert list(root.parent.iterdir()) == [root] and list(experiment.iterdir()) == []
    assert len(list(root.glob("a/*/artifacts/[ab]*.json"))) == 2


@pytest.fixture
def line_about(
    record: Record, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[[Path, str], str]:
    """What a run says whose database, in a folder, is the store's after some SQL."""

    def line(root: Path, change: str) -> str:
        monkeypatch.setattr(run_module, "CLOSE_SECONDS", 0.5)
        shutil.copyfile(store / "mlflow.db", root / "mlflow.db")
        with closing(sqlite3.connect(root / "mlflow.db")) as database, database:
            database.execute(change)
        Run(record, root).close()
        (said,) = capsys.readouterr().err.splitlines()
        return said

    return line


@pytest.mark.slow
def test_a_deleted_experiment_is_named_with_what_restores_it(
    record: Record, tmp_path: Path, line_about: Callable[[Path, str], str]
) -> None:
    root = tmp_path / "a folder"
    root.mkdir()
    line = line_about(
        root, "UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'sample'"
    )
    assert line.startswith("MLflow has not got this run (its experiment 'sample' was deleted")
    restore = re.search("restore it: (.*restore --experiment-id [0-9]+)", line)[1]
    command(root, "sh", "-c", restore)
    assert sync(root) == (1, 0)
    assert shown(root, record).status == "FINISHED"


def test_a_database_of_another_version_gets_mlflows_whole_message(
    tmp_path: Path, line_about: Callable[[Path, str], str]
) -> None:
    line = line_about(tmp_path, "UPDATE alembic_version SET version_num = '451aebb31d03'")
    assert "451aebb31d03" in line and "mlflow db upgrade" in line
    assert line.endswith("nothing is lost. When it is back: python -m storyflower sync")
    with pytest.raises(InputError, match="mlflow db upgrade"):
        sync(tmp_path)


# As a kill while MLflow makes its database: the table that stands in for another is there.
KILLED = """
import os, sys
from pathlib import Path
from alembic.ddl.impl import DefaultImpl
from storyflower.tracking import mlflow
DefaultImpl.rename_table = lambda *_, **__: os.kill(os.getpid(), 9)
mlflow.connect("sample", Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_kill_while_the_database_is_made_is_no_harm(tmp_path: Path, record: Record) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    Run(record, tmp_path).close()
    assert shown(tmp_path, record).status == "FINISHED"
    # What the killed one had made so far lies beside it, under a name that git ignores.
    left = {path.name for path in tmp_path.glob("mlflow.db*")} - {"mlflow.db"}
    command(tmp_path, "git", "init", "-q")
    shutil.copyfile(ROOT / ".gitignore", tmp_path / ".gitignore")
    assert left == set(command(tmp_path, "git", "check-ignore", *left).splitlines())


@pytest.mark.slow
def test_two_repositories_make_one_database(
    tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one's is there just before ours gets its name: its run stays."""
    path = tmp_path / "shared.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    link, others = os.link, []

    def late(part: Path, target: Path) -> None:
        if not others:
            others.append(path)
            theirs = python(WHOLE_RUN, replace(record, experiment="theirs"), tmp_path / "theirs")
            assert theirs.communicate()[1] == ""
        link(part, target)

    monkeypatch.setattr(os, "link", late)
    _, number = mlflow.connect("ours", tmp_path / "ours")
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
        query = "SELECT name FROM experiments WHERE experiment_id = ?"
        assert database.execute(query, [number]).fetchall() == [("ours",)]
    assert outbox(tmp_path / "theirs") == []


@pytest.mark.parametrize(("uri", "file"), [("a%20b.db", "a b.db"), ("link.db", "target.db")])
def test_a_database_whose_path_is_written_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, file: str
) -> None:
    (tmp_path / "link.db").symlink_to("target.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{uri}")
    mlflow.connect("sample", tmp_path)
    assert (tmp_path / file).stat().st_size and (tmp_path / "link.db").is_symlink()


def test_a_database_in_which_a_migration_was_stopped(
    record: Record, tmp_path: Path, line_about: Callable[[Path, str], str]
) -> None:
    line = line_about(tmp_path, "CREATE TABLE _alembic_tmp_tags (key TEXT)")
    assert f"{tmp_path / 'mlflow.db'}: MLflow was stopped while it made or upgraded" in line
    assert "remove it if it was new" in line
    assert record.key in outbox(tmp_path)


def test_a_run_is_named_after_the_dvc_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table"
    table.write_bytes(b"")
    monkeypatch.setenv("DVC_EXP_NAME", "tiny-lr")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc")
    record = new_record(experiment="sample", params={}, tags={}, dataset=table)
    assert record.name == record.tags["dvc_experiment"] == "tiny-lr"
    assert record.tags["git_commit"] == "abc"
    monkeypatch.delenv("DVC_EXP_NAME")
    record = new_record(experiment="sample", params={}, tags={}, dataset=table)
    assert record.name == "repro-abc" and "dvc_experiment" not in record.tags


@pytest.mark.slow
def test_three_processes_at_once_on_a_new_database(tmp_path: Path, record: Record) -> None:
    records = [Record(**{**vars(record), "key": f"{n}{record.key[1:]}"}) for n in range(3)]
    processes = [python(WHOLE_RUN, each, tmp_path) for each in records]
    assert [process.communicate()[1] for process in processes] == ["", "", ""]
    for each in records:
        seen = shown(tmp_path, each)
        assert seen.status == "FINISHED"
        assert seen.history("loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert outbox(tmp_path) == []


@pytest.mark.slow
def test_a_refused_connection_prints_one_line_and_takes_under_ten_seconds(
    store: Path, tmp_path: Path, record: Record
) -> None:
    shutil.copyfile(store / "mlflow.db", tmp_path / "mlflow.db")  # to make one takes seconds
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    uri = f"http://minsu:s3cret@127.0.0.1:{port}"
    times = []
    for settings in ({}, {"MLFLOW_TRACKING_URI": uri}):
        start = time.monotonic()
        _, err = python(WHOLE_RUN, record, tmp_path, **settings).communicate()
        times.append(time.monotonic() - start)
    (line,) = err.splitlines()
    assert line.startswith("MLflow has not got this run") and "s3cret" not in line
    assert times[1] < 10 + times[0]


@pytest.mark.slow
def test_an_evaluation_twice_and_one_that_fails(
    interim: Path, classifier: Path, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storyflower.evaluate.evaluate import evaluate

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    Run(record).close()
    record.save(tmp_path / "run.json")

    def stage(target: str) -> None:
        evaluate(
            classifier=classifier,
            tokens=interim / "tokens",
            dialogues=interim / "dialogues.parquet",
            history=interim / "history.csv",
            record=tmp_path / "run.json",
            reports=tmp_path / "reports",
            predictions=tmp_path / "predictions.parquet",
            target=target,
            device="cpu",
            precision="fp32",
            seed=42,
            checkpoint_dir="auto",
        )

    stage("major")
    stage("major")
    with pytest.raises(InputError):
        stage("fine")  # not what the classifier was trained on
    assert outbox(tmp_path) == []
    seen = shown(tmp_path, record)
    assert seen.status == "FINISHED"
    results = [name for name in seen.run.data.metrics if name.startswith("final_")]
    assert "final_accuracy" in results
    assert {name: len(seen.history(name)) for name in results} == dict.fromkeys(results, 1)


def checkpointed(record: Record) -> dict[str, Any]:
    """The record as a checkpoint keeps it and gives it back."""
    return json.loads(json.dumps(asdict(record)))


@pytest.mark.slow
@pytest.mark.parametrize("death", ["Ctrl-C", "SIGKILL", "SIGKILL, and the machine is gone"])
def test_a_training_that_goes_on_is_the_same_run(
    store: Path, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(store))
    first = Run(record, store)
    first.log({"loss": 1.0}, 1)
    saved = checkpointed(record)
    if death == "Ctrl-C":
        first.close("KILLED")
        assert shown(store, record).status == "KILLED"
    else:
        first.log({"loss": 0.5}, 2)  # after the checkpoint
        first.close("RUNNING")
        # A process that was killed leaves its record in the outbox.
        if death == "SIGKILL":
            record.save(store / OUTBOX / record.key / "record.json")
        else:
            saved = checkpointed(record)

    fresh = replace(new_record_of("again", tmp_path), tags={"dvc_experiment": "again"})
    again = Run(continued(fresh, saved), store)
    assert again.record.key == record.key
    for _ in range(200):
        if shown(store, record).status == "RUNNING":
            break
        time.sleep(0.1)
    again.log({"loss": 0.5}, 2)
    again.log({"loss": 0.25}, 3)
    again.close()
    seen = shown(store, record)  # which unpacks a single run
    assert seen.status == "FINISHED"
    assert seen.history("loss") == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert seen.run.info.start_time == record.start
    assert seen.run.info.run_name == seen.run.data.tags["dvc_experiment"] == "again"
    assert seen.run.data.params == {"seed": "1"}


def new_record_of(name: str, folder: Path) -> Record:
    table = folder / "dialogues.parquet"
    record = new_record(experiment="sample", params={"seed": 2}, tags={}, dataset=table)
    return replace(record, name=name)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}'])
def test_a_damaged_waiting_record_gives_way_to_the_checkpoints(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    waiting = tmp_path / OUTBOX / record.key / "record.json"
    waiting.parent.mkdir(parents=True)
    waiting.write_text(content, encoding="utf-8")
    saved = checkpointed(replace(record, metrics=[("loss", 0.5, 1, 1)]))
    again = continued(replace(record, name="again"), saved)
    assert [*map(tuple, again.metrics)] == [("loss", 0.5, 1, 1)] and again.name == "again"


def test_without_a_checkpoint_a_run_is_new_and_a_strange_key_is_refused(record: Record) -> None:
    assert continued(record, None) is record
    for key in ("", "..", "../../x", "a" * 31, "a" * 33):
        with pytest.raises(InputError, match="is not the key of a run"):
            continued(record, {**checkpointed(record), "key": key})
