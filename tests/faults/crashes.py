"""Kill trainings with SIGKILL, start them again, and see that nothing is lost.

    python -m tests.faults.crashes --kills 10 --seed 1

A training of a few seconds runs under `dvc repro` (or `dvc exp run`, with or without --temp), is
killed, and is started again by the same command, five times; then it may end. A kill hits dvc
alone, its stage alone, or both: at a random moment, inside the write of a checkpoint, inside the
write of the model, or after the stage, before dvc has recorded it. Each start must go on from the
newest checkpoint. At the end the model and the history must be those of a training that nobody
killed, byte for byte (but for the seconds), and MLflow must hold one run, with every figure once.
Prints the moment that each kill hit, and a row for the table: fault, tries, lost.
"""

import argparse
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.support import command, environment_of, new_repository

# A few seconds of training, with a checkpoint every few steps.
PARAMS = {"num_epochs": 120, "checkpoint_minutes": 0.0003, "log_interval": 1000}
REPRO = ("dvc", "repro", "train")
COMMANDS = (REPRO, ("dvc", "exp", "run", "train"), ("dvc", "exp", "run", "--temp"))
RANDOM, CHECKPOINT, MODEL = "at random", "in a checkpoint write", "in the model write"
AFTER = "after the stage, before dvc recorded it"
RECORDED = re.compile(r"Stage 'train' (is cached|didn't change)")  # the kill came too late
DVC, STAGE, BOTH = "dvc", "the stage", "dvc and the stage"  # who gets SIGKILL
CTRL_C = "Ctrl-C to dvc and the stage"
CHAIN = 5  # kills of one training
PLACE = re.compile(r"going on from the checkpoint after (?:step (\d+) of )?epoch (\d+)")


class Lost(Exception):
    """A kill cost something."""


def prepare(folder: Path) -> tuple[Path, dict[str, bytes]]:
    """A repository where train comes next; the outputs of its training, which nobody killed."""
    base = folder / "base"
    base.mkdir()
    new_repository(base, **PARAMS)
    command(base, "dvc", "repro", "tokenize")
    command(base, "git", "add", "-A")
    command(base, "git", "commit", "-qm", "tokens")
    whole = shutil.copytree(base, folder / "whole")
    command(whole, sys.executable, "-m", "stages.train")
    return base, outputs(whole)


def outputs(root: Path) -> dict[str, bytes]:
    """The files of the classifier, and history.csv without its seconds."""
    files = {path.name: path.read_bytes() for path in (root / "models/classifier").iterdir()}
    with (root / "reports/history.csv").open(encoding="utf-8", newline="") as file:
        rows = [{**row, "seconds": None} for row in csv.DictReader(file)]
    return {**files, "history.csv": json.dumps(rows).encode()}


class Training:
    """A running `dvc …` command and the stage below it."""

    def __init__(self, root: Path, words: tuple[str, ...]):
        self.root = root
        self.log = root.with_suffix(".log")
        with self.log.open("w", encoding="utf-8") as log:
            self.dvc = subprocess.Popen(
                words,
                cwd=root,
                env=environment_of(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # for Ctrl-C: as in a terminal of its own
            )

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, condition: Callable[[], object], pause: float = 0.0005) -> bool:
        """Wait for the condition; False when dvc ended before it came."""
        deadline = time.monotonic() + 300
        while not condition():
            if self.dvc.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise Lost(f"it hangs: {self.output[-1000:]}")
            time.sleep(pause)
        return True

    def places(self) -> list[Path]:
        """Where the stage may work: here, or in the folder of a --temp experiment."""
        return [self.root, *self.root.glob(".dvc/tmp/exps/standalone/*")]

    def stage(self) -> int | None:
        """The living process that trains; it writes its number beside its lock."""
        for place in self.places():
            with suppress(OSError, ValueError):
                number = int((place / ".storyflower/train.pid").read_text())
                return number if alive(number) else None
        return None

    def newest(self) -> str:
        """The position of the newest checkpoint; "" before the first."""
        files = self.root.glob(".storyflower/checkpoints/*/*.safetensors")
        return max((path.name[:12] for path in files), default="")

    def phase(self) -> str:
        """What is being done right now, as the files show it."""
        folder = self.root / ".storyflower/checkpoints"
        if any(folder.glob("*/.tmp*")) or any(folder.glob("*/*.part")):
            return CHECKPOINT
        if self.writes_model():
            return MODEL
        if any((place / "reports/run.json").exists() for place in self.places()):
            return AFTER
        return "between checkpoints" if self.newest() else "before the first checkpoint"

    def writes_model(self) -> bool:
        return any((place / "models/classifier.part").exists() for place in self.places())

    def strike(self, when: str, who: str, rng: random.Random) -> str | None:
        """Kill at that moment; return the phase that was hit, None where the moment never came."""
        # The stage works: it has begun, or gone on.
        if not self.until(lambda: self.stage() and re.search("^(epoch|going)", self.output, re.M)):
            return None
        number = self.stage()
        if when == RANDOM:
            time.sleep(rng.uniform(0, 1))
        elif when == AFTER:
            self.until(lambda: self.stage() is None)
        elif when == MODEL:
            if not self.until(self.writes_model, pause=0):  # it takes a few milliseconds
                return None
        elif not self.until(lambda: self.phase() == when):
            return None
        if self.dvc.poll() is not None or (when == RANDOM and not self.stage()):
            return None
        phase = self.phase()
        if who == CTRL_C:
            self.interrupt()
            return phase
        if who in (DVC, BOTH):
            self.dvc.kill()
        if who in (STAGE, BOTH):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.dvc.wait()
        return phase

    def interrupt(self) -> None:
        """Ctrl-C reaches dvc and the stage; the stage must save and say so."""
        os.killpg(self.dvc.pid, signal.SIGINT)
        code = self.dvc.wait(timeout=300)
        said = "; saved; go on with: " in self.output or not self.newest()
        if code == 0 or "Traceback" in self.output or not said:
            raise Lost(f"Ctrl-C: exit code {code}, {self.output[-1000:]}")


def chain(
    root: Path, words: tuple[str, ...], kills: list[tuple[str, str]], rng: random.Random
) -> list[str]:
    """One training and its kills; returns a line a kill. Raises Lost."""
    lines: list[str] = []
    training = Training(root, words)
    for when, who in kills:
        phase = training.strike(when, who, rng)
        if phase is None:
            break  # it has ended: there was nothing left to kill
        lines.append(f"{' '.join(words)}: {who} killed, {phase}")
        orphan = training.stage()
        newest = training.newest()
        lines[-1] += mend_dvc(root)
        training = Training(root, words)
        if orphan and who == DVC:
            lines[-1] += end_orphan(training, orphan, rng)
        if newest:
            expect_to_go_on(training, newest)
    if training.dvc.wait(timeout=300) != 0:
        raise Lost(training.output[-1000:])
    return lines


def mend_dvc(root: Path) -> str:
    """What docs/reliability.md tells the user to do about DVC's own lock file.

    DVC rewrites it in place; killed in that moment it leaves it empty, and refuses to start.
    """
    file = root / ".dvc/tmp/rwlock"
    if file.exists() and not file.stat().st_size:
        file.unlink()
        return ", DVC's rwlock left empty and removed"
    return ""


def end_orphan(training: Training, orphan: int, rng: random.Random) -> str:
    """A stage outlived its dvc. The next one must wait for it, whatever becomes of it."""
    end, said = rng.choice(
        (
            (signal.SIGKILL, ", then its stage too"),
            (signal.SIGTERM, ", then SIGTERM to its stage"),
            (0, ", its stage worked to the end"),
        )
    )
    training.until(lambda: "waiting: process" in training.output or not alive(orphan))
    if alive(orphan) and PLACE.search(training.output):
        raise Lost("two trainings side by side")
    with suppress(ProcessLookupError):
        os.kill(orphan, end)
    training.until(lambda: not alive(orphan))
    return said


def alive(number: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(number, 0)
        return True
    return False


def expect_to_go_on(training: Training, newest: str) -> None:
    """The start after a kill must go on from there, or from what an orphan has saved since."""
    training.until(lambda: PLACE.search(training.output) or RECORDED.search(training.output))
    if RECORDED.search(training.output):
        return
    found = PLACE.search(training.output)
    if not found:
        raise Lost(f"it did not go on from {newest}: {training.output[-1000:]}")
    step, epoch = int(found[1] or 0), int(found[2])
    place = f"{epoch - (step > 0):05d}{step:07d}"
    if place < newest:
        raise Lost(f"it went on from {place} and not from {newest}")


def expect_one_run(root: Path) -> None:
    """MLflow holds one finished run, with one figure an epoch."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    if [run.info.status for run in runs] != ["FINISHED"]:
        raise Lost(f"MLflow has {[run.info.status for run in runs]}")
    steps = [metric.step for metric in client.get_metric_history(runs[0].info.run_id, "loss")]
    if steps != list(range(1, PARAMS["num_epochs"] + 1)):
        raise Lost(f"MLflow has the steps {steps}")


def expect_equal(root: Path, words: tuple[str, ...], whole: dict[str, bytes]) -> None:
    if "--temp" in words:
        name = command(root, "dvc", "exp", "list", "--name-only").split()[-1]
        command(root, "dvc", "exp", "apply", name)
    found = outputs(root)
    wrong = [name for name in {*found, *whole} if found.get(name) != whole.get(name)]
    if wrong:
        raise Lost(f"other bytes: {', '.join(sorted(wrong))}")


def plan(rng: random.Random, count: int, who: tuple[str, ...]) -> list[tuple[str, str]]:
    """When to strike, and at whom; half of the moments are random."""
    kills = []
    for _ in range(count):
        when = rng.choice((RANDOM, RANDOM, RANDOM, CHECKPOINT, MODEL, AFTER))
        if CTRL_C in who:
            kills.append((RANDOM, CTRL_C))
        else:
            kills.append((when, DVC if when == AFTER else rng.choice(who)))
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ctrl-c", action="store_true", help="Ctrl-C in the place of SIGKILL")
    options = parser.parse_args()
    # A shell lets what it starts in the background ignore Ctrl-C, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Two threads that spin beside other work make ten seconds of an epoch of milliseconds.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rng = random.Random(options.seed)
    who = (CTRL_C,) if options.ctrl_c else (DVC, STAGE, BOTH)
    tries = lost = 0
    with tempfile.TemporaryDirectory() as folder:
        base, whole = prepare(Path(folder))
        while tries < options.kills:
            words = rng.choice(COMMANDS)
            root = shutil.copytree(base, Path(folder) / "killed")
            kills = plan(rng, min(CHAIN, options.kills - tries), who)
            try:
                lines = chain(root, words, kills, rng)
                expect_equal(root, words, whole)
                expect_one_run(root)
            except Lost as error:
                lost += 1
                lines = [f"{' '.join(words)}: LOST after {kills}: {error}"]
            print(*lines, sep="\n", flush=True)
            tries += len(lines)
            shutil.rmtree(root)
    fault = CTRL_C if options.ctrl_c else "SIGKILL of dvc, of its stage or of both"
    print(f"\n| {fault} | {tries} | {lost} |")


if __name__ == "__main__":
    main()
