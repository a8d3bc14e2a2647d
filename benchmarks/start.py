"""Seconds from the start of the train stage's process to its first step, most of it imports.

    dvc repro tokenize && python -m benchmarks.start

In: what the stages before training have written here.
Out: five lines, one a process, which ends where its first step would begin. It works in a folder
of its own, so it finds no checkpoint to go on from, and models/, reports/ and MLflow's runs stay
as they are.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from storyflower.common.errors import InputError, exit_with_line
from storyflower.common.files import read_yaml

ROOT = Path(__file__).parents[1]
TIMES = 5
INPUTS = ("data/interim/dialogues.parquet", "data/interim/labels.json", "data/interim/tokens")
INPUTS += ("models/encoder",)
MARK = "the first step"
TRAIN = f"""
import os
from stages import train
from storyflower.common.errors import exit_with_line
from storyflower.train import step

def first_step(*_):
    print({MARK!r}, flush=True)
    os._exit(0)

step.seed_step = first_step  # what a step does first
exit_with_line(train.main)
"""


def main() -> None:
    for name in INPUTS:
        if not Path(name).exists():
            raise InputError(f"{name}: not found; 'dvc repro tokenize' makes it")
    params = read_yaml(Path("params.yaml"), "run this in the repository's root")
    with tempfile.TemporaryDirectory(prefix="storyflower-start-") as temporary:
        folder = Path(temporary)
        for name in INPUTS:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(Path(name).resolve())
        text = yaml.safe_dump({**params, "checkpoint_dir": "auto"}, allow_unicode=True)
        (folder / "params.yaml").write_text(text, encoding="utf-8")
        for _ in range(TIMES):
            print(f"{seconds_to_first_step(folder):.1f} s", flush=True)


def seconds_to_first_step(folder: Path) -> float:
    """Start the stage in the folder; raises InputError, with its last line, when no step comes."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", TRAIN],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        line = ""
        for line in process.stdout:
            if line.strip() == MARK:
                return time.perf_counter() - started
    reason = line.strip().removeprefix("error: ")
    raise InputError(f"the train stage ended before its first step: {reason}")


if __name__ == "__main__":
    exit_with_line(main)
