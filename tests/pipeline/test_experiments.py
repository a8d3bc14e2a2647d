"""The README's commands, one after the other: what the experiments leave, and who can read it."""

import csv
import json
import sys
from pathlib import Path
from urllib.parse import unquote

import pyarrow.parquet as pq
import pytest

from tests.faults.test_privacy import CANARY, mode, shows, with_canary
from tests.support import (
    command,
    dialogue_rows,
    mlflow_runs,
    new_repository,
    run,
    write_workbook,
)

KOREAN = {f"GIT_{who}_NAME": "김담화" for who in ("AUTHOR", "COMMITTER")}
MAY_HOLD_TEXT = ("data/", ".dvc/cache/", "models/")  # models: its vocabulary has words


def reachable(root: Path, path: Path) -> bool:
    """Whether somebody else can read the file: no folder up to the repository is closed."""
    folders = [folder for folder in path.parents if folder.is_relative_to(root)]
    return bool(mode(path) & 0o044) and all(mode(folder) & 0o011 for folder in folders)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A repository after the README's commands in the README's order, nothing committed in between,
    and what each said. Its texts are the canary's; by default others may read what is written.

    Its path and its owner's name are Korean: DVC writes both into settings of an experiment's own.
    """
    root = tmp_path_factory.mktemp("repository") / "문서/담화"
    root.mkdir(parents=True)
    new_repository(root)
    command(root, "git", "config", "user.name", "김담화")
    for name, counts in (("sample/표본", (60, 24)), ("aihub/내", (48, 12))):
        for split, count in zip(("Training", "Validation"), counts, strict=True):
            book = root / f"data/{name}_{split}.xlsx"
            write_workbook(book, with_canary(dialogue_rows(count, seed=count)))
    command(root, "dvc", "add", "data/aihub")
    command(root, "git", "add", "-A")
    command(root, "git", "commit", "-qm", "the canary, and my corpus")
    root.chmod(0o755)
    said = {}
    experiment = ["dvc", "exp", "run", "-n"]
    for line in (
        ["dvc", "repro"],
        [*experiment, "two", "-S", "num_epochs=2"],
        ["dvc", "metrics", "show"],
        ["dvc", "plots", "show"],
        [*experiment, "temp", "--temp", "-S", "corpus=aihub", "-S", "target=fine"],
        [*experiment, "queued", "--queue", "-S", "learning_rate=1e-3", "-S", "batch_size=16"],
        ["dvc", "queue", "start"],  # several at once: test_concurrency.py
        ["dvc", "queue", "logs", "queued", "-f"],
        [sys.executable, "-m", "storyflower", "sync"],
        [sys.executable, "-m", "storyflower", "predict", "--json", f"{CANARY} 합격했어"],
    ):
        # As make sets it; dvc's own choice is a folder that all users share.
        site = str(root / ".dvc/tmp/site")
        shell = ("sh", "-c", 'umask 022; exec "$@"', "sh")
        done = run(root, *shell, *line, DVC_SITE_CACHE_DIR=site, **KOREAN)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said[" ".join(line)] = done.stdout + done.stderr
    return root, said


@pytest.mark.slow
def test_repro_then_experiments_here_in_a_temporary_folder_and_in_the_queue(
    used: tuple[Path, dict[str, str]],
) -> None:
    root, said = used
    assert "dvc.lock" in command(root, "git", "ls-files", "--others").splitlines()
    with (root / "reports/history.csv").open(encoding="utf-8", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    metrics = json.loads((root / "reports/metrics.json").read_text(encoding="utf-8"))

    assert f"{metrics['accuracy']:.5g}" in said["dvc metrics show"]
    page = (root / "dvc_plots/index.html").read_text(encoding="utf-8")
    for part in ("train_accuracy", "test_loss", "confusion", "coverage", "learning_curves.png"):
        assert part in page, part
    assert json.dumps("기쁨") in page  # a row of the confusion matrix
    command(root, "git", "check-ignore", "dvc_plots")

    table = json.loads(command(root, "dvc", "exp", "show", "--json"))
    found = {
        each["name"]: each["revs"][0]["data"]
        for row in table
        for each in row.get("experiments") or []
    }
    assert set(found) == {"two", "temp", "queued"}
    shown = found["two"]
    assert shown["params"]["params.yaml"]["data"]["num_epochs"] == 2
    figures = shown["metrics"]["reports/metrics.json"]["data"]
    assert figures["accuracy"] == metrics["accuracy"]
    assert figures["tfidf_accuracy"] == metrics["tfidf_accuracy"]

    first, *others = mlflow_runs(root)
    assert first.info.run_name.startswith("repro-") and first.info.status == "FINISHED"
    runs = {run_.info.run_name: run_ for run_ in others}
    # All in the main repository's store, whatever folder they ran in.
    assert len(others) == 3 and set(runs) == set(found)
    assert all(run_.info.status == "FINISHED" for run_ in runs.values())
    assert runs["two"].data.params["num_epochs"] == "2"
    assert runs["two"].data.metrics["final_accuracy"] == metrics["accuracy"]
    assert runs["temp"].data.params["target"] == "fine"
    assert runs["temp"].data.metrics["final_rows"] == 12
    assert runs["queued"].data.params["learning_rate"] == "0.001"
    assert runs["queued"].data.params["batch_size"] == "16"
    for run_ in runs.values():
        assert "final_accuracy" in run_.data.metrics
        assert run_.data.tags["dvc_experiment"] == run_.info.run_name
        artifacts = Path(unquote(run_.info.artifact_uri.removeprefix("file://")))
        assert artifacts.is_relative_to(root) and (artifacts / "metrics.json").exists()


@pytest.mark.slow
def test_no_log_and_nothing_in_mlflow_repeats_the_text(used: tuple[Path, dict[str, str]]) -> None:
    root, said = used
    everything = "".join(said.values())
    assert "기쁨" in everything and "queued" in everything
    assert not shows(everything.encode())
    names = set()
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not name.startswith(MAY_HOLD_TEXT):
            names.add(name.split("/")[0])
            assert not shows(path.read_bytes()), name
    # It was looked for where it could be.
    assert {"mlflow.db", "mlartifacts", "reports", ".storyflower", ".dvc", ".git"} <= names
    texts = pq.read_table(root / "data/interim/predictions.parquet")["text"].to_pylist()
    assert texts and all(text.startswith(CANARY) for text in texts)


@pytest.mark.slow
def test_only_the_owner_reaches_what_holds_text(used: tuple[Path, dict[str, str]]) -> None:
    root, _ = used
    for folder in (".dvc/cache", ".dvc/tmp", ".storyflower", "data/interim"):
        assert mode(root / folder) == 0o700, folder
    tables = [root / f"data/interim/{name}.parquet" for name in ("dialogues", "predictions")]
    copies = [path for path in (root / ".dvc/cache").rglob("*") if path.is_file()]
    assert len(copies) > 10
    assert not [path for path in (*tables, *copies) if reachable(root, path)]
    # A cache from before, and a table before DVC puts a copy in its place.
    (root / ".dvc/cache").chmod(0o755)
    command(root, "sh", "-c", f"umask 022; exec {sys.executable} -m stages.ingest")
    assert mode(tables[0]) == 0o600
    assert mode(root / ".dvc/cache") == 0o700
    # DVC's own index holds pickles: in the closed folder, not where any user may write.
    assert list((root / ".dvc/tmp/site/repo").iterdir())


@pytest.mark.slow
def test_your_own_workbooks_with_dvc_add_and_fine_emotions(
    used: tuple[Path, dict[str, str]],
) -> None:
    """The last test: what the experiment wrote takes the place of what the others look at."""
    root, _ = used
    command(root, "dvc", "exp", "apply", "temp", **KOREAN)
    metrics = json.loads((root / "reports/metrics.json").read_text(encoding="utf-8"))
    assert metrics["rows"] == 12
    assert {row["name"] for row in metrics["classes"]} == {
        "기쁨/감사하는",
        "분노/짜증내는",
        "불안/초조한",
    }
    command(root, "git", "add", "-A")
    tracked = command(root, "git", "ls-files", "data").splitlines()
    assert "data/aihub.dvc" in tracked
    assert not any(name.strip('"').startswith("data/aihub/") for name in tracked)
