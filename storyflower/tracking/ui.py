"""MLflow's pages on this machine, opened where there is something to see.

In: the repository's root and a port.
Out: a server on 127.0.0.1, in the place of this process, and the address of its newest chart.
"""

import os
import socket
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from storyflower.common.errors import InputError
from storyflower.tracking.mlflow import tracking_uri

HOST = "127.0.0.1"
CHARTS = "/#/experiments/{}/runs?compareRunsMode=CHART"  # MLflow's own address of that view


def serve(root: Path, port: int) -> NoReturn:
    """Become MLflow's server; raises InputError where the port is taken."""
    check_port(port)
    uri = tracking_uri(root)
    print(f"http://{HOST}:{port}{newest_view(uri)}", flush=True)
    words = ["mlflow", "ui", "--backend-store-uri", uri, "--host", HOST, "--port", str(port)]
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.execv(sys.executable, [sys.executable, "-m", *words])


def check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {port} of {HOST} cannot be used ({getattr(error, 'strerror', None) or error}"
                "); choose another: make ui PORT=5001"
            ) from None


def newest_view(uri: str) -> str:
    """The path of the charts of the corpus that was trained on last; "/" where there is none."""
    path = Path(uri.partition(":///")[2])
    if uri.startswith("sqlite") and path.is_file():
        query = (
            "SELECT experiment_id FROM runs WHERE lifecycle_stage = 'active' "
            "ORDER BY start_time DESC LIMIT 1"
        )
        try:
            with closing(sqlite3.connect(path)) as database:
                if row := database.execute(query).fetchone():
                    return CHARTS.format(row[0])
        except sqlite3.Error:  # MLflow itself says what is wrong with it
            pass
    return "/"
