"""The whole pipeline through DVC, in repositories of its own."""

import ast
import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import (
    ROOT,
    TINY_PARAMS,
    WORDS,
    command,
    dialogue_rows,
    run,
    set_params,
    write_workbook,
)

STAGES = ("encoder", "ingest", "labels", "tokenize", "train", "evaluate")


def imported_modules(stage: str) -> set[str]:
    """Files of the project that a stage imports: at start, and inside its modules' functions."""
    code = f"import sys, stages.{stage}; print(*(m for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    waiting = [
        name for name in done.stdout.split() if name.split(".")[0] in ("stages", "storyflower")
    ]
    files: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name.split(".")[0] not in ("stages", "storyflower"):
            continue
        path = ROOT / f"{name.replace('.', '/')}.py"
        if not path.exists():
            path = path.with_suffix("") / "__init__.py"
        relative = path.relative_to(ROOT).as_posix()
        if not path.exists() or relative in files:
            continue
        files.add(relative)
        if relative == "storyflower/__init__.py":
            continue  # its lazy import is for users; no stage touches it
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
    return files


@pytest.mark.parametrize("stage", STAGES)
def test_every_imported_module_is_a_dependency(stage: str) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    declared = {dep for dep in stages[stage]["deps"] if dep.endswith(".py")}
    assert declared == imported_modules(stage)


def test_stages_are_short_and_named_as_promised() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert set(stages) == set(STAGES)
    for name, stage in stages.items():
        assert stage["cmd"] == f"python -m stages.{name}"
        assert len((ROOT / "stages" / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 40


def mlflow_runs(root: Path) -> list:
    """All runs of the repository's own MLflow store, oldest first."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, order_by=["attributes.start_time"])
    return list(runs)


@pytest.fixture(scope="module")
def finished(make_repository) -> Path:
    """A repository after `dvc repro`."""
    root = make_repository(num_epochs=8, dr_rate=0.1)
    command(root, "dvc", "repro")
    return root


@pytest.mark.slow
def test_repro_makes_every_report_and_learns(finished: Path) -> None:
    metrics = json.loads((finished / "reports/metrics.json").read_text(encoding="utf-8"))
    assert metrics["rows"] == 24
    assert metrics["accuracy"] == metrics["correct"] / 24
    assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
    assert metrics["accuracy"] >= 0.9  # each word gives its class away
    assert {row["name"] for row in metrics["classes"]} == {"기쁨", "분노", "불안"}
    majority, tfidf = metrics["baselines"]
    assert majority["accuracy"] == pytest.approx(1 / 3)
    assert majority["loss"] == pytest.approx(math.log(3), abs=1e-3)
    assert majority["verdict"].startswith("The classifier is better than always answering")
    assert tfidf["difference"] == pytest.approx(metrics["accuracy"] - tfidf["accuracy"])
    assert tfidf["low"] <= tfidf["difference"] <= tfidf["high"]
    for name in ("confusion.png", "learning_curves.png"):
        assert (finished / "reports" / name).read_bytes().startswith(b"\x89PNG")

    with (finished / "reports/history.csv").open(encoding="utf-8", newline="") as file:
        history = list(csv.DictReader(file))
    columns = "epoch,loss,train_accuracy,test_loss,test_accuracy,seconds,tokens"
    assert ",".join(history[0]) == columns
    assert [row["epoch"] for row in history] == [str(n) for n in range(1, 9)]
    assert float(history[-1]["loss"]) < float(history[0]["loss"])
    assert float(history[-1]["test_accuracy"]) == metrics["accuracy"]

    with (finished / "reports/confusion.csv").open(encoding="utf-8", newline="") as file:
        pairs = list(csv.DictReader(file))
    assert sum(row["actual"] == row["predicted"] for row in pairs) == metrics["correct"]

    predictions = pq.read_table(finished / "data/interim/predictions.parquet").to_pylist()
    assert [row["row"] for row in predictions] == list(range(2, 26))  # as the sheet counts
    classes = [row["name"] for row in metrics["classes"]]
    for row in predictions:
        shares = {name: row[f"p({name})"] for name in classes}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == max(shares, key=shares.get)
        assert row["right"] == (row["actual"] == row["predicted"])


@pytest.mark.slow
def test_the_classifier_predicts_and_transformers_loads_its_encoder(finished: Path) -> None:
    out = command(finished, sys.executable, "-m", "storyflower", "predict", "합격했어", "--json")
    row = json.loads(out)
    assert row["label"] == "기쁨" and row["text"] == "합격했어"
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)

    from transformers import AutoModel

    from storyflower import Classifier

    first, second = Classifier.load(finished / "models/classifier").predict(
        ["심장이 뛰어", "따지고 싶어"]
    )
    assert (first.label, second.label) == ("불안", "분노")
    encoder = AutoModel.from_pretrained(finished / "models/classifier", local_files_only=True)
    assert encoder.config.hidden_size == 32


@pytest.mark.slow
def test_no_text_is_tracked_by_git(finished: Path) -> None:
    command(finished, "git", "add", "-A")
    tracked = command(finished, "git", "diff", "--cached", "--name-only").splitlines()
    command(finished, "git", "reset", "-q")
    assert "dvc.lock" in tracked
    texts = [word.encode() for words in WORDS.values() for word in words]
    for name in tracked:
        content = (finished / name).read_bytes()
        assert not any(text in content for text in texts), name


@pytest.mark.slow
def test_corpus_text_stays_out_of_mlflow_files(finished: Path) -> None:
    texts = [word.encode() for words in WORDS.values() for word in words]
    files = [finished / "mlflow.db", *(p for p in (finished / "mlartifacts").rglob("*.*"))]
    for path in files:
        assert not any(text in path.read_bytes() for text in texts), path


@pytest.mark.slow
def test_a_second_repro_runs_nothing(finished: Path) -> None:
    out = command(finished, "dvc", "repro")
    assert "Running stage" not in out
    assert out.count("didn't change, skipping") == len(STAGES)


@pytest.mark.slow
def test_the_run_in_mlflow(finished: Path) -> None:
    (run_,) = mlflow_runs(finished)
    assert run_.info.status == "FINISHED"
    params = yaml.safe_load((finished / "params.yaml").read_text(encoding="utf-8"))
    resolved = {"learning_rate": 0.003, "optimizer": "adamw"}  # auto: the card's
    for key, value in {**params, **resolved}.items():
        assert run_.data.params[key] == str(value)
    assert run_.data.params["pretokenize"] == "bert"
    metrics = json.loads((finished / "reports/metrics.json").read_text(encoding="utf-8"))
    assert run_.data.metrics["final_accuracy"] == metrics["accuracy"]
    assert run_.data.metrics["final_macro_f1"] == metrics["macro_f1"]
    commit = command(finished, "git", "rev-parse", "HEAD").strip()
    assert run_.data.tags["git_commit"] == commit
    assert run_.info.run_name == f"repro-{commit[:7]}"
    assert {"device", "torch", "transformers", "dataset_digest"} <= set(run_.data.tags)
    (dataset,) = run_.inputs.dataset_inputs
    assert dataset.dataset.digest == run_.data.tags["dataset_digest"]

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished / 'mlflow.db'}")
    history = client.get_metric_history(run_.info.run_id, "test_accuracy")
    with (finished / "reports/history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(m.step, m.value) for m in history] == [
        (int(row["epoch"]), float(row["test_accuracy"])) for row in rows
    ]
    names = {artifact.path for artifact in client.list_artifacts(run_.info.run_id)}
    assert names == {"confusion.png", "learning_curves.png", "metrics.json", "history.csv"}
    assert not any((finished / ".storyflower/outbox").iterdir())


@pytest.mark.slow
def test_experiments_in_the_workspace_in_a_temporary_folder_and_in_the_queue(
    make_repository,
) -> None:
    root = make_repository()
    command(root, "dvc", "exp", "run", "-n", "two", "-S", "num_epochs=2")
    command(root, "dvc", "exp", "run", "-n", "temp", "--temp", "-S", "num_epochs=3")
    command(root, "dvc", "exp", "run", "-n", "q1", "--queue", "-S", "learning_rate=1e-3")
    command(root, "dvc", "exp", "run", "-n", "q2", "--queue", "-S", "batch_size=16")
    command(root, "dvc", "queue", "start", "-j", "2")
    command(root, "dvc", "queue", "logs", "q1", "-f")
    command(root, "dvc", "queue", "logs", "q2", "-f")

    table = json.loads(command(root, "dvc", "exp", "show", "--json"))
    names = {e["name"] for row in table for e in row.get("experiments") or []}
    assert names == {"two", "temp", "q1", "q2"}

    runs = {run_.info.run_name: run_ for run_ in mlflow_runs(root)}
    assert set(runs) == names  # all in the main repository's store, whatever folder they ran in
    assert all(run_.info.status == "FINISHED" for run_ in runs.values())
    assert runs["temp"].data.params["num_epochs"] == "3"
    assert runs["q1"].data.params["learning_rate"] == "0.001"
    assert runs["q2"].data.params["batch_size"] == "16"
    for run_ in runs.values():
        assert "final_accuracy" in run_.data.metrics
        assert run_.data.tags["dvc_experiment"] == run_.info.run_name
        assert Path(run_.info.artifact_uri.removeprefix("file://")).is_relative_to(root)


@pytest.mark.slow
def test_your_own_workbooks_with_dvc_add(make_repository) -> None:
    root = make_repository()
    write_workbook(root / "data/aihub/내_Training.xlsx", dialogue_rows(48, seed=3))
    write_workbook(root / "data/aihub/내_Validation.xlsx", dialogue_rows(12, seed=4))
    command(root, "dvc", "add", "data/aihub")
    command(root, "git", "add", "data/aihub.dvc")
    command(root, "dvc", "exp", "run", "-n", "mine", "--temp", "-S", "corpus=aihub")
    (run_,) = mlflow_runs(root)
    assert run_.data.metrics["final_rows"] == 12
    tracked = command(root, "git", "ls-files").splitlines()
    assert not any("data/aihub/" in name for name in tracked)


@pytest.mark.slow
def test_bad_input_stops_with_one_line_and_keeps_what_was_there(make_repository) -> None:
    root = make_repository()
    command(root, "dvc", "repro", "labels")
    before = (root / "data/interim/labels.json").read_bytes()
    rows = dialogue_rows(60, seed=1)
    rows[4][7] = 20220101
    write_workbook(root / "data/sample/표본_Training.xlsx", rows)
    done = run(root, sys.executable, "-m", "stages.ingest")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "표본_Training.xlsx" in line and "row 6" in line
    assert run(root, "dvc", "repro").returncode != 0
    assert (root / "data/interim/labels.json").read_bytes() == before

    set_params(root, **TINY_PARAMS, warmup_ratio=1.5)
    done = run(root, sys.executable, "-m", "stages.train")
    assert done.returncode == 1
    assert done.stderr == "error: params.yaml: warmup_ratio must be a number in [0, 1], got 1.5\n"


@pytest.mark.slow
def test_fine_emotions_as_classes(make_repository) -> None:
    root = make_repository(target="fine")
    command(root, "dvc", "repro")
    metrics = json.loads((root / "reports/metrics.json").read_text(encoding="utf-8"))
    assert {row["name"] for row in metrics["classes"]} == {
        "기쁨/감사하는",
        "분노/짜증내는",
        "불안/초조한",
    }


@pytest.mark.slow
def test_a_local_encoder_folder_and_its_change(make_repository, finished: Path) -> None:
    import shutil

    root = make_repository()
    shutil.copytree(finished / "models/encoder", root / "encoders/mine")
    (root / "encoders/mine.yaml").write_text(
        "kind: path\nsource: mine\ntokenizer: sentencepiece\npretokenize: none\n"
        "learning_rate: 1.0e-3\nlicense: unknown\n",
        encoding="utf-8",
    )
    set_params(root, **{**TINY_PARAMS, "encoder": "mine"})
    command(root, "dvc", "repro", "tokenize")
    assert (root / "models/encoder/spiece.model").read_bytes() == (
        finished / "models/encoder/spiece.model"
    ).read_bytes()
    assert "Running stage" not in command(root, "dvc", "repro", "tokenize")
    config = root / "encoders/mine/config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'), encoding="utf-8")
    assert "Running stage 'encoder'" in command(root, "dvc", "repro", "tokenize")
    assert '"relu"' in (root / "models/encoder/config.json").read_text()


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, storyflower, stages.ingest; print({'torch', 'mlflow'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
