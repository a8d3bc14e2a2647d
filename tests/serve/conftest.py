"""A service on a free port: in a thread of the test's process, or as the command itself."""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from resource import RLIMIT_FSIZE, setrlimit
from typing import Any

import pytest
import uvicorn

from storyflower import Classifier
from storyflower.serve.app import make_app
from storyflower.serve.run import config_of
from storyflower.serve.settings import Settings
from tests.support import ROOT, environment_of


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str | None]:
        """(status, code, field), of an answer that is an error and nothing else."""
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) == {"code", "message", "field"}
        assert self.json["error"]["message"]
        return self.status, self.json["error"]["code"], self.json["error"]["field"]


@dataclass(frozen=True)
class Service:
    port: int

    def call(
        self, path: str, body: Any = None, *, method: str | None = None, **headers: str
    ) -> Answer:
        """One request. A body that is bytes, or an iterator of them, goes as it is."""
        raw = body is None or isinstance(body, bytes) or hasattr(body, "__next__")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(
                method or ("GET" if body is None else "POST"),
                path,
                body if raw else json.dumps(body),
                {name.replace("_", "-"): value for name, value in headers.items()},
            )
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()


@pytest.fixture(scope="session")
def loaded(classifier: Path) -> Classifier:
    return Classifier.load(classifier, device="cpu")


@contextmanager
def running(app: Any, settings: Settings) -> Iterator[Service]:
    """A server in a thread; it ends as it does after SIGTERM."""
    server = uvicorn.Server(config_of(lambda: app, settings))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=[[listener]])
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Service(port)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def start(loaded: Classifier) -> Iterator[Callable[..., Service]]:
    """Start services with some settings of their own; they end with the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.Server, "main_loop", main_loop)
        ends = []

        def start(classifier: Any = loaded, **settings: Any) -> Service:
            of_it = Settings(**settings)
            context = running(make_app(classifier, of_it), of_it)
            ends.append(context)
            return context.__enter__()

        yield start
        for context in ends:
            context.__exit__(None, None, None)


@pytest.fixture(scope="package")
def service(loaded: Classifier) -> Iterator[Service]:
    """One that tests share."""
    settings = Settings()
    with running(make_app(loaded, settings), settings) as service:
        yield service


async def main_loop(server: uvicorn.Server) -> None:
    """As uvicorn's, which looks only ten times a second whether to end."""
    import asyncio

    await server.on_tick(0)
    while not server.should_exit:
        await asyncio.sleep(0.005)


class Command:
    """python -m storyflower serve … in a process of its own."""

    def __init__(self, *words: str, largest_file: int | None = None, **environment: str):
        main = "import storyflower.__main__; storyflower.__main__.command()"
        # A command that waits for the answer to uvicorn's ping never ends
        main = f"from storyflower.serve import run; run.PING = 10_000; {main}"
        limit = None
        if largest_file is not None:
            limit = partial(setrlimit, RLIMIT_FSIZE, (largest_file, largest_file))
        self.process = subprocess.Popen(
            [sys.executable, "-c", main, "serve", "--port", "0", *words],
            preexec_fn=limit,
            cwd=ROOT,
            env=environment_of(OMP_NUM_THREADS="1", **environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def started(self) -> Service:
        """Wait for the address that it prints; a service that did not start says why."""
        line = self.process.stdout.readline()
        if not line:
            pytest.fail(f"it did not start: {self.process.communicate()[1]}")
        return Service(int(line.rpartition(":")[2]))

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Send a signal, wait; return (exit code, all that it has written)."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out + err


@pytest.fixture
def command(classifier: Path) -> Iterator[Callable[..., Command]]:
    """Start the command with the tiny classifier; what still runs is killed after the test."""
    commands = []

    def command(*words: str, **more: Any) -> Command:
        os.environ.pop("STORYFLOWER_TOKEN", None)
        commands.append(Command("--model", str(classifier), *words, **more))
        return commands[-1]

    yield command
    for each in commands:
        with suppress(ProcessLookupError):
            each.process.kill()
        each.process.wait()
        each.process.stdout.close()
        each.process.stderr.close()
