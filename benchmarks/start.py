"""Seconds from the start of the train stage to its first step, most of it imports.

    dvc repro tokenize && python -m benchmarks.start

Each of five runs is a process of its own, which ends where the first step would begin. They leave
no run in MLflow.
"""

import subprocess
import sys

FIRST_STEP = """
import time
start = time.perf_counter()
import contextlib, os
from stages import train
from storyflower.train import fit, run

def first_step(*_):
    print(f"{time.perf_counter() - start:.1f}", flush=True)
    os._exit(0)

fit.seed_step = first_step  # what a step does first
run.Run = contextlib.nullcontext
train.main()
"""


def main() -> None:
    for _ in range(5):
        result = subprocess.run(
            [sys.executable, "-c", FIRST_STEP], capture_output=True, text=True, check=False
        )
        if result.returncode:
            sys.exit(result.stderr or result.stdout)
        print(f"{result.stdout.splitlines()[-1]} s", flush=True)


if __name__ == "__main__":
    main()
