"""Start and stop the service: sockets, workers, signals.

In: what the command line says.
Out: a running service; it returns once SIGTERM or Ctrl-C has come and every request is answered.
Not supported: TLS (put a proxy in front), unix sockets.
"""

import functools
import ipaddress
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess, multiprocess

from storyflower.common.errors import InputError, line_of, one_line
from storyflower.common.signals import catch
from storyflower.serve.settings import Settings

TOKEN = "STORYFLOWER_TOKEN"
METRICS = "PROMETHEUS_MULTIPROC_DIR"
PING = 60  # seconds in which a worker must say that it lives
ON_ITS_WAY = 0.5  # seconds that a stop leaves to the request of a connection that is open
KEEP_ALIVE = 75  # seconds; longer than nginx keeps an idle connection, which is 60


@dataclass(frozen=True)
class Place:
    """Where the service listens, and with how many processes."""

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    listen_publicly: bool = False


def serve(model: Path, place: Place, settings: Settings) -> None:
    """Serve a classifier's folder until a signal comes.

    The token is the environment's STORYFLOWER_TOKEN. Raises InputError for a folder, a host, a
    port, an origin or a token that cannot be used.
    """
    settings = replace(settings, token=token_of(os.environ))
    check(place, settings)
    with bound(place) as listener:
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if place.workers == 1:
            run_here(model, settings, listener, address)
        else:
            run_workers(model, settings, listener, address=address, workers=place.workers)


def run_workers(
    model: Path, settings: Settings, listener: socket.socket, *, address: str, workers: int
) -> None:
    """Several workers, in processes that this one starts."""
    with metrics_folder() as folder:
        listener.listen()  # who connects before a worker is there waits for one
        (folder / "said").write_text(address, encoding="utf-8")
        reasons, reason_of_worker = Pipe(duplex=False)  # a disk may be full
        worker = functools.partial(
            worker_app,
            model,
            settings,
            workers=workers,
            folder=folder,
            parent=os.getpid(),
            reasons=reason_of_worker,
        )
        config = config_of(worker, settings)
        config.workers = workers
        # uvicorn says that a worker did not start; ours is the line that says why
        getLogger("uvicorn.error").addFilter(lambda _: not reasons.poll())
        multiprocess.Process = Worker
        Multiprocess(config, [listener]).run()
        if reasons.poll():
            raise InputError(reasons.recv_bytes().decode())


def token_of(environment: dict[str, str] | os._Environ) -> str | None:
    token = environment.get(TOKEN)
    if token is not None and not re.fullmatch("[!-~]+", token):
        raise InputError(
            f"{TOKEN} must be visible ASCII characters without blanks; unset it to serve without"
        )
    return token


def check(place: Place, settings: Settings) -> None:
    numbers = {
        "--port": (place.port, 0),
        "--workers": (place.workers, 1),
        "--batch-limit": (settings.batch_limit, 1),
        "--queue": (settings.queue, 1),
        "--window-ms": (settings.window * 1000, 0),
        "--deadline": (settings.deadline, 0.01),
    }
    for name, (value, least) in numbers.items():
        if not least <= value < float("inf"):
            raise InputError(f"{name} must be at least {least}, got {value:g}")
    if place.port > 65535:  # getaddrinfo would take the rest of a division
        raise InputError(f"--port must be at most 65535, got {place.port}")
    for origin in settings.origins:
        if not re.fullmatch(r"https?://[^/\s*?#]+", origin):
            raise InputError(f"--cors {origin}: write an origin such as https://example.com")
    if is_loopback(place.host):
        return
    if not place.listen_publicly:
        raise InputError(
            f"--host {place.host} is open to other machines; add --listen-publicly if they may ask"
        )
    if not settings.token:
        print(
            f"warning: anyone who reaches {place.host} may ask; set {TOKEN} to a long random word",
            file=sys.stderr,
        )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def bound(place: Place) -> Iterator[socket.socket]:
    """A socket that has its address but does not listen yet: that comes with the classifier."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(cannot_use(place, error)) from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except (OSError, OverflowError) as error:
            raise InputError(cannot_use(place, error)) from None
        yield listener


def cannot_use(place: Place, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or error
    return f"port {place.port} of {place.host} cannot be used ({reason}); choose another: --port"


@contextmanager
def metrics_folder() -> Iterator[Path]:
    """An empty folder in which the workers put their numbers together."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="storyflower-metrics-"))
    except OSError:
        raise InputError(
            "no folder for temporary files can be written to; make room, or set TMPDIR to another"
        ) from None
    os.environ[METRICS] = str(folder)
    try:
        yield folder
    finally:
        os.environ.pop(METRICS, None)
        shutil.rmtree(folder, ignore_errors=True)


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, which on a stop or reload would close what has no request yet at once.

    A client that has just connected, or a proxy that keeps its connections, would lose the request
    that it is sending.
    """

    def shutdown(self) -> None:
        """Close the connection once it has no request, and none on its way."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(ON_ITS_WAY, self.close_or_finish)
        else:
            super().shutdown()

    def close_or_finish(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()


def config_of(app: object, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=True,
        lifespan="on",
        http=Protocol,
        ws="none",
        log_config=None,  # only warnings and errors, to stderr
        access_log=False,  # a path or a query may hold anything
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        # uvicorn kills a worker that does not answer its ping, and gives up a reload whose worker
        # is not ready in time: a large model on a busy machine takes long to load
        timeout_worker_healthcheck=PING,
        # A request may take the deadline twice: for its body and for its answer
        timeout_graceful_shutdown=int(2 * settings.deadline) + 5,
    )


def run_here(model: Path, settings: Settings, listener: socket.socket, address: str) -> None:
    """One worker: this process."""
    os.environ.pop(METRICS, None)  # its numbers need no folder
    server = uvicorn.Server(config_of(lambda: app, settings))
    # The handler of a stop signal sets should_exit at once; the server looks at it every 0.1 s
    app = load_app(model, settings, 1, lambda: server.should_exit)
    # uvicorn raises the signal again once it has ended; that would make it look like a failure
    handlers = catch(server.handle_exit)
    try:
        listener.listen()  # who reads the address may connect at once
        print(address, flush=True)
        server.run([listener])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Worker(multiprocess.Process):
    """One of several workers, seen from the process that started it."""

    def start(self) -> None:
        super().start()
        # While this end is open here, too, the end of a worker that has been asked whether it lives
        # looks like one that is busy, and uvicorn would wait for its answer.
        self.child_conn.close()


def worker_app(
    model: Path,
    settings: Settings,
    *,
    workers: int,
    folder: Path,
    parent: int,
    reasons: Connection,
) -> ASGIApp:
    """The app of one of several workers, in its own process.

    `reasons` takes why none can start.
    """
    threading.Thread(target=follow, args=[parent], daemon=True).start()
    try:
        # What cleans /tmp may have removed it.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        app = load_app(model, settings, workers)
    except Exception as error:
        if (reason := line_of(error)) is None:  # a bug
            traceback.print_exc()
            reason = one_line(repr(error))
        if not isinstance(error, InputError):
            reason = f"a worker cannot start: {reason}"
        # Both may have been removed since, too
        started = (folder / "once").exists() or not (folder / "said").exists()
        if started:  # a reload, or a worker that died: the others go on
            print(f"error: {reason}", file=sys.stderr, flush=True)
            time.sleep(1)  # uvicorn starts the next one at once
        else:
            reasons.send_bytes(reason.encode(errors="backslashreplace"))
        # Not sys.exit: unloading torch takes a second. By STARTUP_FAILURE uvicorn stops the others.
        os._exit(1 if started else STARTUP_FAILURE)
    try:
        os.link(folder / "said", folder / "once")  # the first worker says it
    except OSError:  # it is said
        pass
    else:
        print((folder / "said").read_text(encoding="utf-8"), flush=True)
    return app


def follow(parent: int) -> None:
    """Stop this worker when the process that started it was killed; it would keep the port."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def load_app(
    model: Path, settings: Settings, workers: int, stopping: Callable[[], bool] = lambda: False
) -> ASGIApp:
    """Load the classifier and compute once, so that the first request is as fast as the others."""
    import torch

    from storyflower.predict import Classifier
    from storyflower.serve.app import make_app

    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(cores() // workers, 1))
    classifier = Classifier.load(model, precision=settings.precision)
    classifier.predict(["오늘 하루"])
    return make_app(classifier, settings, stopping)


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
