"""MLflow is down, hangs, answers nonsense, is locked or damaged: the training does not care."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from storyflower.__main__ import main as command_line
from storyflower.common import locks
from storyflower.common.errors import InputError
from storyflower.tracking import mlflow
from storyflower.tracking import run as run_module
from storyflower.tracking.record import KEY_TAG, OUTBOX, Record, new_record
from storyflower.tracking.run import Run, sync
from tests.faults.concurrency import ARTIFACTS
from tests.support import before_training, run

NOT_GOT = "MLflow has not got this run"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that itself runs inside an experiment must not join it."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module", autouse=True)
def mlflow_is_imported() -> None:
    """It takes seconds, which are not the server's."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # as in mlflow.connect
    import mlflow  # noqa: F401


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The main repository's root."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def make_record(tmp_path: Path) -> Callable[[], Record]:
    def make() -> Record:
        table = tmp_path / "dialogues.parquet"
        table.write_bytes(b"a table")
        return new_record(experiment="sample", params={"seed": 1}, tags={}, dataset=table)

    return make


@pytest.fixture
def hole() -> Iterator[str]:
    """The address of a socket that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def answering() -> Iterator[tuple[str, dict[str, Any]]]:
    """A web server that gives every request the same answer: its address, and the answer."""
    answer: dict[str, Any] = {"status": 500, "body": b"<html>Internal Server Error</html>"}

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(answer["status"])
            self.send_header("Content-Length", str(len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"])

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answer
        server.shutdown()
        thread.join()


class Server:
    """A real MLflow server on this machine."""

    def __init__(self, folder: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", folder

    def start(self) -> None:
        words = ["server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        words += ["--backend-store-uri", "sqlite:///server.db"]
        words += ["--artifacts-destination", "artifacts"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.2)
        raise AssertionError((self.folder / "log").read_text())

    def signal(self, number: int) -> None:
        """To the server and its workers: SIGSTOP makes it hang, SIGCONT go on."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


def shown(uri: str, record: Record) -> dict[str, Any]:
    """What MLflow has of a record; fails unless that is one run."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    place = client.get_experiment_by_name(record.experiment).experiment_id
    (run,) = client.search_runs([place], f"tags.`{KEY_TAG}` = '{record.key}'")
    history = client.get_metric_history(run.info.run_id, "loss")
    return {
        "status": run.info.status,
        "loss": [(point.step, point.value) for point in history],
        "artifacts": sorted(item.path for item in client.list_artifacts(run.info.run_id)),
        "metrics": run.data.metrics,
    }


def in_outbox(root: Path, record: Record) -> Record:
    return Record.load(root / OUTBOX / record.key / "record.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (500, b"<html>Internal Server Error</html>", "500"),
        (200, b"<html>Please log in</html>", ""),  # a hotel's page in front of every address
        (200, b"{}", ""),
    ],
)
def test_a_server_that_answers_nonsense_costs_one_line(
    status: int,
    body: bytes,
    said: str,
    answering: tuple[str, dict[str, Any]],
    root: Path,
    make_record: Callable[[], Record],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    uri, answer = answering
    answer.update(status=status, body=body)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(run_module, "CLOSE_SECONDS", 2)
    run = Run(make_record(), root)
    start = time.monotonic()
    for epoch in range(20):
        run.log({"loss": 0.5}, epoch)
    assert time.monotonic() - start < 0.5
    run.close()
    assert time.monotonic() - start < 4
    (line,) = capfd.readouterr().err.splitlines()  # and nothing of MLflow's own
    assert line.startswith(NOT_GOT) and said in line
    assert in_outbox(root, run.record).status == "FINISHED"
    # On a busy machine a push may still go on, and sync leaves a run alone that is being pushed.
    with locks.acquire(locks.beside(run.folder), "pushes"):
        pass
    with pytest.raises(InputError, match="MLflow does not take 1 runs"):
        sync(root)
    assert capfd.readouterr().err == ""
    assert len(in_outbox(root, run.record).metrics) == 20


def down(*_: object) -> None:
    """In the place of mlflow.push: an MLflow that refuses."""
    raise OSError("refused")


def test_it_is_said_once_and_not_by_each_stage(
    root: Path,
    make_record: Callable[[], Record],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    pushed: list[Record] = []

    monkeypatch.setattr(mlflow, "push", down)
    monkeypatch.setattr(run_module, "CLOSE_SECONDS", 0.6)
    monkeypatch.setattr(run_module, "LATE_CLOSE_SECONDS", 0.1)
    record = make_record()
    with Run(record, root) as run:  # train
        run.log({"loss": 0.5}, 1)
    with Run(record, root) as run:  # evaluate
        run.log_results({"final_accuracy": 0.75})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(NOT_GOT)
    monkeypatch.setattr(mlflow, "push", lambda record, *_: pushed.append(record))
    assert sync(root) == (1, 0)
    # Delivered, and down again: that is another outage.
    monkeypatch.setattr(mlflow, "push", down)
    Run(record, root).close()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_evaluation_that_fails_takes_nothing_from_the_one_before(
    root: Path,
    tmp_path: Path,
    make_record: Callable[[], Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mlflow, "push", down)
    monkeypatch.setattr(run_module, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(run_module, "LATE_CLOSE_SECONDS", 0.1)
    record = make_record()
    Run(record, root).close()
    record.save(tmp_path / "run.json")  # as the train stage leaves it
    (tmp_path / "metrics.json").write_text("{}", encoding="utf-8")
    with Run(Record.load(tmp_path / "run.json"), root) as run:
        run.log_results({"final_accuracy": 0.75})
        run.attach(tmp_path / "metrics.json")
    with pytest.raises(ValueError), Run(Record.load(tmp_path / "run.json"), root):
        raise ValueError
    kept = in_outbox(root, record)
    assert [(key, value) for key, value, _ in kept.results] == [("final_accuracy", 0.75)]
    assert kept.artifacts == ["metrics.json"]


def take_the_lock(path: Path) -> sqlite3.Connection:
    """What a program does that writes to a database and hangs."""
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("CREATE TABLE IF NOT EXISTS other (a)")
    connection.commit()
    connection.execute("BEGIN EXCLUSIVE")
    return connection


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["locked", "damaged", "read-only"])
def test_a_database_that_cannot_be_written_costs_one_line(
    fault: str,
    root: Path,
    make_record: Callable[[], Record],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(run_module, "CLOSE_SECONDS", 3)
    monkeypatch.setattr(run_module, "LATE_CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(mlflow, "LOCKED_SECONDS", 0.5)
    database, lock = root / "mlflow.db", None
    if fault == "locked":
        lock = take_the_lock(database)
    elif fault == "damaged":
        database.write_bytes(b"not a database" * 1000)
    else:
        # Root may write to what nobody may write to; a folder is no database for root either.
        database.mkdir()
    record = make_record()
    start = time.monotonic()
    with Run(record, root) as run:
        run.log({"loss": 0.5}, 1)
    with Run(record, root) as run:
        run.log_results({"final_accuracy": 0.75})
    assert time.monotonic() - start < 5.8  # paid twice it would be 6
    lines = capfd.readouterr().err.splitlines()
    # Two stages are two processes; here the second waits for the first one's last push.
    (line,) = [line for line in lines if not line.startswith("waiting: process ")]
    said = {"locked": "database is locked", "damaged": "file is not a database"}
    assert line.startswith(NOT_GOT) and said.get(fault, "unable to open") in line
    with locks.acquire(locks.beside(root / OUTBOX / record.key), "pushes"):
        pass  # the late push has ended
    with pytest.raises(InputError, match=said.get(fault, "unable to open")):
        sync(root)

    if lock:
        lock.rollback()
        lock.close()
    elif database.is_dir():
        database.rmdir()
    else:
        database.unlink()
    assert sync(root) == (1, 0)
    assert sync(root) == (0, 0)
    seen = shown(f"sqlite:///{database}", record)
    assert seen["status"] == "FINISHED" and seen["loss"] == [(1, 0.5)]
    assert seen["metrics"]["final_accuracy"] == 0.75
    # An earlier test of this process may have imported mlflow with its own way of logging.
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if " INFO mlflow" not in line] == []


@pytest.mark.slow
def test_a_run_that_a_hanging_server_made_twice_becomes_one(
    root: Path, make_record: Callable[[], Record]
) -> None:
    """Its answer did not come, so the run was asked for again; then the server did both."""
    from mlflow import MlflowClient

    record = make_record()
    with Run(record, root) as run:
        run.log({"loss": 0.5}, 1)
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    place = client.get_experiment_by_name("sample").experiment_id
    client.create_run(place, record.start, {KEY_TAG: record.key})
    with Run(record, root) as run:
        run.log_results({"final_accuracy": 0.75})
    seen = shown(f"sqlite:///{root / 'mlflow.db'}", record)
    assert seen["status"] == "FINISHED" and seen["loss"] == [(1, 0.5)]
    assert seen["metrics"]["final_accuracy"] == 0.75


# A stage as it is, with a clock in it.
TIMED_STAGE = """
import runpy, sys, time
from storyflower.tracking.run import Run

def timed(method):
    def call(*arguments, **settings):
        start = time.monotonic()
        method(*arguments, **settings)
        print("WAITED", method.__name__, time.monotonic() - start, flush=True)
    return call

Run.log, Run.close = timed(Run.log), timed(Run.close)
runpy.run_module(sys.argv[1], run_name="__main__")
"""


@pytest.mark.slow
def test_a_training_with_a_server_that_hangs_is_mirrored_later(
    hole: str,
    server: Server,
    interim: Path,
    make_repository: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Both stages as they are, with the seconds that users wait."""
    repository = make_repository(num_epochs=3)
    before_training(interim, repository)
    waited: dict[str, list[float]] = {"log": [], "close": []}
    lines: list[str] = []
    for stage in ("train", "evaluate"):
        words = (sys.executable, "-c", TIMED_STAGE, f"stages.{stage}")
        # MLflow's import takes seconds of the stage's eight on a slow machine; a silent socket that
        # is given up after two, not five, leaves room for the reason to be known.
        env = {"MLFLOW_TRACKING_URI": hole, "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
        done = run(repository, *words, **env)
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            if line.startswith("WAITED"):
                _, method, seconds = line.split()
                waited[method].append(float(seconds))
        lines += done.stderr.splitlines()
    assert len(waited["close"]) == 2 and sum(waited["close"]) < 10
    assert len(waited["log"]) == 3 and max(waited["log"]) < 0.2
    (line,) = lines
    assert line.startswith(NOT_GOT) and "Read timed out" in line

    monkeypatch.chdir(repository)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    for count in (1, 0):  # before it, MLflow says where the run can be seen
        command_line(["sync"])
        out = capsys.readouterr().out
        assert out.splitlines()[-1] == f"{count} runs delivered to MLflow"
    seen = shown(server.uri, Record.load(repository / "reports/run.json"))
    assert seen["status"] == "FINISHED"
    assert [step for step, _ in seen["loss"]] == [1, 2, 3]
    metrics = json.loads((repository / "reports/metrics.json").read_text(encoding="utf-8"))
    assert seen["metrics"]["final_accuracy"] == metrics["accuracy"]
    assert seen["artifacts"] == list(ARTIFACTS)


@pytest.mark.slow
def test_a_server_that_hangs_dies_and_comes_back_gets_each_run_once(
    server: Server,
    root: Path,
    tmp_path: Path,
    make_record: Callable[[], Record],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(run_module, "LONGEST_PAUSE", 0)  # else the test takes minutes

    def until(reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not reached():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    hung = Run(make_record(), root)
    until(lambda: hung._delivered > 0)
    server.signal(signal.SIGSTOP)
    hung.log({"loss": 0.9}, 1)
    until(lambda: hung._error != "")  # a request was given up
    assert "Read timed out" in hung._error
    server.signal(signal.SIGCONT)
    hung.attach(tmp_path / "a.txt")
    hung.close()
    assert capsys.readouterr().err == ""
    seen = shown(server.uri, hung.record)
    assert (seen["status"], seen["loss"], seen["artifacts"]) == ("FINISHED", [(1, 0.9)], ["a.txt"])

    ended, lasting = Run(make_record(), root), Run(make_record(), root)
    until(lambda: ended._delivered and lasting._delivered)
    for each in (ended, lasting):
        each.log({"loss": 0.9}, 1)
    until(lambda: ended._delivered > 1 and lasting._delivered > 1)
    assert shown(server.uri, ended.record)["status"] == "RUNNING"
    server.kill()
    for each in (ended, lasting):
        each.log({"loss": 0.5}, 2)
        each.attach(tmp_path / "a.txt")
    start = time.monotonic()
    ended.close()
    assert time.monotonic() - start < 10
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(NOT_GOT)
    with pytest.raises(InputError, match="1 runs"):
        sync(root)
    server.start()
    lasting.close()  # the server is back before the end, so there is nothing to say
    assert capsys.readouterr().err == ""
    assert sync(root) == (1, 0)
    assert sync(root) == (0, 0)
    for each in (ended, lasting):
        assert shown(server.uri, each.record) == {
            "status": "FINISHED",
            "loss": [(1, 0.9), (2, 0.5)],
            "artifacts": ["a.txt"],
            "metrics": {"loss": 0.5},
        }
