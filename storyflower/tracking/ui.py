"""MLflow's web pages on this machine, with the address of the newest charts.

In: the repository's root and a port.
Out: a server on 127.0.0.1 that replaces this process. The charts' address is printed first.
"""

import os
import socket
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import NoReturn

from storyflower.common.errors import InputError
from storyflower.tracking.mlflow import database_file, tracking_uri

HOST = "127.0.0.1"
CHARTS = "/#/experiments/{}/runs?compareRunsMode=CHART"  # MLflow's path for the chart view


def serve(root: Path, port: int) -> NoReturn:
    """Replace this process with MLflow's server; raises InputError if the port cannot be used."""
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
    """The path of the charts for the corpus trained on last; "/" if there is none."""
    path = database_file(uri)
    if path and path.is_file():
        query = (
            "SELECT experiment_id FROM runs WHERE lifecycle_stage = 'active' "
            "ORDER BY start_time DESC LIMIT 1"
        )
        # MLflow itself reports the error
        with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as database:
            if row := database.execute(query).fetchone():
                return CHARTS.format(row[0])
    return "/"
