"""Experiments at once in a fresh clone: does each leave one whole run of its own in MLflow?

    python -m tests.faults.concurrency 8

Copies the working tree to a temporary folder, queues that many experiments with a tiny encoder,
lets DVC run all of them side by side, and compares what MLflow holds with what each experiment
wrote. Prints what is wrong and exits 1, or prints the time that it took.
"""

import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support import ROOT, environment_of, show_tiny_to_git, write_tiny_encoder

ARTIFACTS = (
    *("confusion.png", "coverage.png", "history.csv", "learning_curves.png", "metrics.json"),
    "reliability.png",
)


def at_once(root: Path, count: int, *settings: str) -> list[str]:
    """Run `count` experiments side by side in a repository; return what is wrong, one line each.

    They differ in their seed, so that no two have the same figures.
    """
    names = [f"seed-{seed}" for seed in range(1, count + 1)]
    for seed, name in enumerate(names, start=1):
        changed = [word for setting in (f"seed={seed}", *settings) for word in ("-S", setting)]
        command(root, "dvc", "exp", "run", "--queue", "-n", name, *changed)
    command(root, "dvc", "queue", "start", "-j", str(count))
    logs = {name: command(root, "dvc", "queue", "logs", name, "-f") for name in names}  # to its end
    failed = [
        f"{name}: {line}"
        for name, log in logs.items()
        for line in log.splitlines()
        if "ERROR" in line
    ]
    return failed or problems(root, names)


def problems(root: Path, names: list[str]) -> list[str]:
    """What MLflow lacks, or holds though it should not, against what each experiment wrote."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    places = [each.experiment_id for each in client.search_experiments()]
    runs = list(client.search_runs(places))
    table = json.loads(command(root, "dvc", "exp", "show", "--json"))
    written = {
        each["name"]: each["revs"][0]["data"]["metrics"]["reports/metrics.json"]["data"]
        for row in table
        for each in row.get("experiments") or []
    }
    found = []
    if sorted(run.info.run_name for run in runs) != sorted(names):
        found.append(f"MLflow has the runs {sorted(run.info.run_name for run in runs)}")
    if sorted(written) != sorted(names):
        found.append(f"DVC has the experiments {sorted(written)}")
    for run in runs:
        name, metrics = run.info.run_name, run.data.metrics
        artifacts = sorted(item.path for item in client.list_artifacts(run.info.run_id))
        checks = {"status": run.info.status == "FINISHED", "artifacts": artifacts == [*ARTIFACTS]}
        checks["seed"] = name == f"seed-{run.data.params.get('seed')}"
        figures = written.get(name, {})
        checks["results"] = bool(figures) and all(
            metrics.get(f"final_{key}") == value for key, value in figures.items()
        )
        if checks["artifacts"]:
            folder = Path(client.download_artifacts(run.info.run_id, ""))
            attached = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            checks["metrics.json"] = attached["loss"] == figures.get("loss")
            with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
                epochs = list(csv.DictReader(file))
            for key in ("loss", "test_loss"):
                shown = [m.value for m in client.get_metric_history(run.info.run_id, key)]
                checks[f"history of {key}"] = shown == [float(row[key]) for row in epochs]
        found += [f"{name}: {what} is wrong" for what, right in checks.items() if not right]
    waiting = [path.name for path in (root / ".storyflower/outbox").iterdir()]
    return found + [f"the outbox still holds {name}" for name in waiting]


def command(root: Path, *words: str) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(words, cwd=root, env=environment_of(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def clone(target: Path) -> None:
    """A repository with the working tree's files, committed, and a card for a tiny encoder."""
    listed = command(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, target / name)
    write_tiny_encoder(target / "encoders", sample=True)
    show_tiny_to_git(target)
    command(target, "git", "init", "-q")
    command(target, "git", "add", "-A")
    command(target, "git", "commit", "-qm", "start")


def main() -> None:
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        clone(root)
        start = time.perf_counter()
        wrong = at_once(root, count, "encoder=tiny", "num_epochs=2")
        seconds = time.perf_counter() - start
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{count} experiments at once: {count} whole runs in MLflow, {seconds:.0f} s")


if __name__ == "__main__":
    main()
