"""What an MLflow that is down costs a training: seconds waited, and what is said.

    python -m tests.faults.outage [FAULT …]

Trains and evaluates a tiny model in a temporary folder, once for each fault, and prints a row for
each: the seconds that both stages together spent in the mirror, and the lines on stderr.
"""

import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from tests.faults.concurrency import clone
from tests.support import environment_of

FAULTS = ("none", "refuses", "hangs", "answers 500", "locked", "damaged")

# A stage as it is, with a clock in it.
TIMED_STAGE = """
import atexit, runpy, sys, time
from storyflower.tracking.run import Run

waited = 0.0

def timed(method):
    def call(*arguments, **settings):
        global waited
        start = time.monotonic()
        method(*arguments, **settings)
        waited += time.monotonic() - start
    return call

for name in ("__init__", "log", "log_results", "attach", "close"):
    setattr(Run, name, timed(getattr(Run, name)))
atexit.register(lambda: print("WAITED", waited))
runpy.run_module(sys.argv[1], run_name="__main__")
"""


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def fault(name: str, root: Path) -> Iterator[str]:
    """Make a fault; yield the address of the MLflow that has it."""
    if name == "answers 500":
        with HTTPServer(("127.0.0.1", 0), Refusing) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
        return
    database = root / "fault.db"
    with socket.create_server(("127.0.0.1", 0)) as hole:
        server = f"http://127.0.0.1:{hole.getsockname()[1]}"
        if name == "hangs":
            yield server
        elif name == "refuses":
            hole.close()
            yield server
        elif name == "locked":
            lock = sqlite3.connect(database, isolation_level=None)
            lock.execute("CREATE TABLE other (a)")
            lock.execute("BEGIN EXCLUSIVE")
            yield f"sqlite:///{database}"
            lock.close()
        elif name == "damaged":
            database.write_bytes(b"not a database" * 1000)
            yield f"sqlite:///{database}"
        else:
            yield f"sqlite:///{database}"
    database.unlink(missing_ok=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        clone(root)
        params = (root / "params.yaml").read_text(encoding="utf-8")
        params = params.replace("encoder: seedling", "encoder: tiny")
        (root / "params.yaml").write_text(params, encoding="utf-8")
        subprocess.run(
            ["dvc", "repro", "-q", "tokenize"], cwd=root, env=environment_of(), check=True
        )
        for name in sys.argv[1:] or FAULTS:
            shutil.rmtree(root / ".storyflower", ignore_errors=True)
            waited, said = 0.0, []
            with fault(name, root) as uri:
                for stage in ("train", "evaluate"):
                    done = subprocess.run(
                        [sys.executable, "-c", TIMED_STAGE, f"stages.{stage}"],
                        cwd=root,
                        env=environment_of() | {"MLFLOW_TRACKING_URI": uri},
                        capture_output=True,
                        text=True,
                    )
                    if done.returncode:
                        sys.exit(done.stderr)
                    waited += float(done.stdout.split("WAITED ")[1])
                    said += done.stderr.splitlines()
            print(f"{name}: {waited:.1f} s; said: {said}", flush=True)


if __name__ == "__main__":
    main()
