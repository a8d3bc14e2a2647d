"""The command: what it refuses, what it logs, how it stops, and several workers."""

import http.client
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from storyflower.__main__ import main
from storyflower.common.errors import InputError
from storyflower.serve import run
from storyflower.serve.settings import Settings
from tests.serve.conftest import Command, Service
from tests.support import ROOT
from tests.support import run as started

SECRET = "심장이 뛰는 비밀"
BODY = {"texts": [SECRET]}


@pytest.mark.parametrize(
    ("place", "settings", "complaint"),
    [
        ({"host": "0.0.0.0"}, {}, "--host 0.0.0.0 is open to other machines; add --listen-publ"),
        ({"host": "::"}, {}, "--host :: is open to other machines"),
        ({"host": "192.0.2.1"}, {}, "--host 192.0.2.1 is open to other machines"),
        ({"host": "no such"}, {}, "--host no such is open to other machines"),
        ({"port": 70_000}, {}, "--port must be at most 65535, got 70000"),
        ({"port": -1}, {}, "--port must be at least 0, got -1"),
        ({"workers": 0}, {}, "--workers must be at least 1, got 0"),
        ({}, {"batch_limit": 0}, "--batch-limit must be at least 1, got 0"),
        ({}, {"precision": "fp16"}, "precision must be fp32 or bf16, got 'fp16'"),
        ({}, {"queue": 0}, "--queue must be at least 1, got 0"),
        ({}, {"window": float("nan")}, "--window-ms must be at least 0, got nan"),
        ({}, {"window": -0.001}, "--window-ms must be at least 0, got -1"),
        ({}, {"deadline": float("inf")}, "--deadline must be at least 0.01, got inf"),
        ({}, {"origins": ("example.com",)}, "--cors example.com: write an origin such as"),
        ({}, {"origins": ("*",)}, "--cors *: write an origin such as"),
        ({}, {"origins": ("https://example.com/page",)}, "write an origin such as"),
    ],
)
def test_what_it_refuses(
    classifier: Path, place: dict[str, object], settings: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InputError) as refusal:
        run.serve(classifier, run.Place(**place), Settings(**settings))
    assert str(refusal.value).startswith(complaint) or complaint in str(refusal.value)


def test_the_command_has_no_defaults_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(run, "serve", lambda *what: given.append(what[2]))
    main(["serve"])
    assert given == [Settings()]


@pytest.mark.parametrize("token", ["", " ", "두 글자", "with blank", "line\n"])
def test_a_token_that_no_header_can_hold(
    classifier: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("STORYFLOWER_TOKEN", token)
    with pytest.raises(InputError, match="^STORYFLOWER_TOKEN must be visible ASCII"):
        run.serve(classifier, run.Place(port=0), Settings())


def test_a_port_that_is_taken(classifier: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"^port {port} of 127.0.0.1 cannot be used"):
            run.serve(classifier, run.Place(port=port), Settings())


def test_listening_publicly_without_a_token_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = run.Place(host="0.0.0.0", port=0, listen_publicly=True)
    for token, warned in ((None, True), ("s3cret-word", False)):
        if token:
            monkeypatch.setenv("STORYFLOWER_TOKEN", token)
        with pytest.raises(InputError, match="not found"):
            run.serve(tmp_path / "none", place, Settings())
        err = capsys.readouterr().err
        assert err.startswith("warning: anyone who reaches 0.0.0.0 may ask") == warned
        assert "s3cret" not in err


@pytest.mark.slow
def test_a_stop_finishes_what_is_in_flight_and_logs_no_text(
    command: Callable[..., Command],
) -> None:
    """The window is so long that the first request still waits when the signal comes."""
    running = command("--window-ms", "2000")
    service = running.started()
    idle = http.client.HTTPConnection("127.0.0.1", service.port)  # kept open by its client
    idle.request("GET", "/healthz")
    idle.getresponse().read()
    service.call(f"/{SECRET.encode().hex()}?q={SECRET.encode().hex()}")
    service.call("/v1/diary", {"text": SECRET, SECRET: 1})
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.call, "/v1/predict", BODY)
        while b"storyflower_waiting_requests 1.0" not in service.call("/metrics").body:
            assert not first.done()
        running.process.send_signal(signal.SIGTERM)
        while is_open(service.port):
            time.sleep(0.01)
        assert first.result().status == 200
    code, written = running.end()
    idle.close()
    assert code == 0, written
    assert SECRET not in written and SECRET.encode().hex() not in written
    assert written == ""  # the address was read before
    with pytest.raises(ConnectionError):
        service.call("/healthz")


@pytest.mark.slow
def test_one_worker_counts_in_its_own_memory(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    """What cleans /tmp, or a disk that is full, takes no number away."""
    service = command(TMPDIR=str(tmp_path), PROMETHEUS_MULTIPROC_DIR="none").started()
    assert not list(tmp_path.iterdir())
    assert service.call("/healthz").status == 200
    counted = b'storyflower_requests_total{path="/healthz",status="200"} 1.0\n'
    assert counted in service.call("/metrics").body


@pytest.mark.slow
def test_a_stop_as_soon_as_the_address_is_there(command: Callable[..., Command]) -> None:
    """uvicorn has not set its handlers yet."""
    running = command()
    running.started()
    assert running.end(signal.SIGTERM) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("used", [False, True])
def test_a_request_that_is_on_its_way_when_a_stop_comes_is_answered(
    command: Callable[..., Command], used: bool
) -> None:
    running = command()
    service = running.started()
    assert service.call("/healthz").status == 200  # it accepts connections by now
    client = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)

    def status() -> int:
        client.request("GET", "/healthz")
        answer = client.getresponse()
        answer.read()
        return answer.status

    client.connect()
    assert not used or status() == 200
    running.process.send_signal(signal.SIGTERM)
    while is_open(client.port):
        time.sleep(0.01)
    assert status() == 200
    assert running.end() == (0, "")


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_two_workers(command: Callable[..., Command]) -> None:
    """Numbers are summed, whichever worker is asked; a killed one is replaced."""
    running = command("--workers", "2", "--window-ms", "100", STORYFLOWER_TOKEN="s3cret-word")
    service = running.started()
    token = {"Authorization": "Bearer s3cret-word"}

    def worker_pids() -> set[int]:
        found = set()
        for each in psutil.Process(running.process.pid).children():
            with suppress(psutil.Error):  # it has ended, and its parent has not noticed
                if "spawn_main" in " ".join(each.cmdline()):
                    found.add(each.pid)
        return found

    def ask(count: int) -> list[int]:
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda _: service.call("/v1/predict", BODY, **token), range(count))
            return [answer.status for answer in answers]

    def counted() -> float:
        lines = service.call("/metrics", **token).body.decode().splitlines()
        name = 'storyflower_requests_total{path="/v1/predict",status="200"} '
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    workers = worker_pids()
    assert len(workers) == 2
    total = 0
    for _ in range(20):  # until both have taken some; a new connection goes to either
        assert ask(24) == [200] * 24
        total += 24
        until = time.monotonic() + 10  # a request is counted once its answer is sent
        while counted() < total and time.monotonic() < until:
            time.sleep(0.01)
        assert counted() == total
        if len(list(Path(folder_of(workers)).glob("counter_*.db"))) == 2:
            break
    else:
        pytest.fail("one worker took every request")
    assert service.call("/metrics").status == 401
    os.kill(min(workers), signal.SIGKILL)
    deadline = time.monotonic() + 120  # a ping that the killed one has not answered takes 60
    while len(worker_pids() - {min(workers)}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert counted() == total  # what the killed one has counted stays
    code, written = running.end(signal.SIGTERM)
    assert code == 0
    assert SECRET not in written and "s3cret" not in written


def folder_of(workers: set[int]) -> str:
    return psutil.Process(min(workers)).environ()["PROMETHEUS_MULTIPROC_DIR"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "where", "reason"),
    [
        (["--model", "none"], {}, "none/classifier.json: not found; train a classifier with 'dvc"),
        (
            ["--model", "none\udcff"],
            {},
            r"none\udcff/classifier.json: not found; train a classifier",
        ),
        ([], {"largest_file": 0}, "no folder for temporary files can be written to; make room, or"),
        # As on a full disk: there is room for the address, and not for the reason
        (["--model", "none" * 20], {"largest_file": 60}, f"{'none' * 20}/classifier.json: not fo"),
        # Each worker wants a file for its numbers
        ([], {"largest_file": 1000}, "a worker cannot start: file too large; raise the limit"),
    ],
)
def test_workers_that_cannot_start_say_so_once(
    command: Callable[..., Command], more: list[str], where: dict, reason: str
) -> None:
    code, written = command("--workers", "2", *more, **where).end()
    (line,) = written.splitlines()
    assert code == 1 and line.startswith(f"error: {reason}")


@pytest.mark.slow
def test_a_worker_that_ends_while_it_is_asked_whether_it_lives(
    command: Callable[..., Command],
) -> None:
    running = command("--workers", "2")
    running.started()
    parent = psutil.Process(running.process.pid)
    asked = next(each for each in parent.children() if "spawn_main" in " ".join(each.cmdline()))
    asked.suspend()
    time.sleep(2)  # uvicorn asks twice a second
    asked.kill()
    psutil.wait_procs([asked], timeout=120)
    assert not asked.is_running()  # its parent has taken note
    assert running.end(signal.SIGTERM)[0] == 0


@pytest.mark.slow
def test_workers_that_meet_a_bug_show_where() -> None:
    place = "run.Place(port=0, workers=2)"
    main = f"from storyflower.serve import run; run.serve(None, {place}, run.Settings())"
    done = started(ROOT, sys.executable, "-c", main)
    assert done.returncode == 1 and "in load_app" in done.stderr
    assert "InputError: a worker cannot start: TypeError" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_worker_is_replaced_without_the_folder_of_numbers(
    command: Callable[..., Command],
) -> None:
    """What cleans /tmp may remove it."""
    running = command("--workers", "2")
    running.started()
    workers = psutil.Process(running.process.pid).children()
    folder = Path(folder_of({each.pid for each in workers}))

    def wait_for_both() -> None:
        deadline = time.monotonic() + 120
        while len(list(folder.glob("gauge_*.db"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    wait_for_both()
    shutil.rmtree(folder)
    running.process.send_signal(signal.SIGHUP)
    wait_for_both()
    assert running.end(signal.SIGTERM) == (0, "")


@pytest.mark.slow
def test_a_killed_parent_takes_its_workers_along(command: Callable[..., Command]) -> None:
    running = command("--workers", "2")
    service = running.started()
    workers = psutil.Process(running.process.pid).children(recursive=True)
    running.process.kill()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    with pytest.raises(ConnectionError):
        Service(service.port).call("/healthz")


@pytest.mark.slow
def test_a_reload_takes_the_new_classifier_and_never_a_damaged_one(
    command: Callable[..., Command], classifier: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "served"
    shutil.copytree(classifier, folder)
    running = command("--workers", "2", "--model", str(folder))
    service = running.started()

    def labels() -> set[str]:
        """The names that the service knows; a worker that reloads meanwhile must leave no gap."""
        answer = service.call("/v1/predict", BODY)
        assert answer.status == 200
        return set(answer.json["predictions"][0]["probabilities"])

    old = labels()
    workers = psutil.Process(running.process.pid).children()
    for file in Path(folder_of({each.pid for each in workers})).iterdir():
        file.unlink()  # as what cleans /tmp does after some days
    head = (folder / "head.safetensors").read_bytes()
    (folder / "head.safetensors").write_bytes(head[:-1])
    running.process.send_signal(signal.SIGHUP)
    assert running.process.stderr.readline().startswith(
        f"error: {folder / 'head.safetensors'}: damaged"
    )
    assert {frozenset(labels()) for _ in range(20)} == {frozenset(old)}

    (folder / "head.safetensors").write_bytes(head)
    document = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    document["labels"] = [f"새 {name}" for name in document["labels"]]
    (folder / "classifier.json").write_text(json.dumps(document), encoding="utf-8")
    running.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 120
    while not all(labels() == set(document["labels"]) for _ in range(20)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    code, written = running.end(signal.SIGTERM)
    assert code == 0 and "Traceback" not in written
