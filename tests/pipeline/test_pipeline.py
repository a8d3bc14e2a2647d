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

from stages import train as train_stage
from storyflower.common.errors import exit_with_line
from storyflower.common.params import Params
from tests.faults.concurrency import ARTIFACTS
from tests.support import (
    ROOT,
    TINY_PARAMS,
    WORDS,
    command,
    dialogue_rows,
    mlflow_runs,
    run,
    set_params,
    write_workbook,
)

STAGES = ("encoder", "ingest", "labels", "tokenize", "train", "evaluate")
IN_ONE_PROCESS = """
import importlib, sys
from storyflower.tracking import mlflow

mlflow.push = lambda *_: None
for stage in sys.argv[1:]:
    importlib.import_module(f"stages.{stage}").main()
"""
LEFTOVERS = ("__pycache__/a.pyc", ".DS_Store", ".fit.py.swp", "fit.py~", ".ipynb_checkpoints/a.py")


# A line for each stage: the project's modules that are imported when it has been. Other people's
# packages, which take seconds, are shared by all.
AT_START = """
import importlib, os, sys
import matplotlib.figure, pyarrow.parquet, sklearn.linear_model, torch, transformers

for stage in sys.argv[1:]:
    if not os.fork():
        importlib.import_module(f"stages.{stage}")
        print(*(name for name in sys.modules if name.startswith(("stages", "story"))), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def at_start() -> dict[str, list[str]]:
    """stage → the project's modules that it imports at its start"""
    out = command(ROOT, sys.executable, "-c", AT_START, *STAGES)
    lines = [line.split() for line in out.splitlines()]
    assert all(f"stages.{stage}" in line for stage, line in zip(STAGES, lines, strict=True))
    return dict(zip(STAGES, lines, strict=True))


def imported_modules(waiting: list[str]) -> set[str]:
    """Files of the project: these modules', and those imported inside the modules' functions."""
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
def test_every_imported_module_is_a_dependency(stage: str, at_start: dict[str, list[str]]) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    declared = [Path(dep) for dep in stages[stage]["deps"] if dep.startswith(("stages", "story"))]
    imported = {Path(file) for file in imported_modules(list(at_start[stage]))}
    # No result depends on them: one sets the garbage collector, one hands names on.
    imported -= {Path("stages/__init__.py"), Path("storyflower/__init__.py")}
    outside = {file for file in imported if not any(file.is_relative_to(dep) for dep in declared)}
    assert outside == set()
    needless = [dep for dep in declared if not any(file.is_relative_to(dep) for file in imported)]
    assert needless == []


def test_the_dependencies_on_code_are_few() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    code = [dep for stage in stages.values() for dep in stage["deps"] if dep.startswith("st")]
    assert len(code) <= 35
    for stage, settings in stages.items():
        own = [dep for dep in settings["deps"] if dep.endswith(".py")]
        assert own == [f"stages/{stage}.py"]  # all else is a folder, with whatever is put there


def test_stages_are_short_and_named_as_promised() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert set(stages) == set(STAGES)
    for name, stage in stages.items():
        launcher = "${launcher}" if name == "train" else "python"
        assert stage["cmd"] == f"{launcher} -m stages.{name}"
        assert len((ROOT / "stages" / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 40


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
    for name in ("confusion.png", "coverage.png", "learning_curves.png", "reliability.png"):
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
    assert row["label"] == "기쁨" and row["row"] == 1
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
def test_the_classifier_is_registered_with_the_run_that_trained_it(finished: Path) -> None:
    before = [run.info.run_id for run in mlflow_runs(finished)]
    out = command(finished, sys.executable, "-m", "storyflower", "register")
    assert out == "models:/storyflower/1: version 1 is now the champion: there was none\n"
    assert [run.info.run_id for run in mlflow_runs(finished)] == before
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished / 'mlflow.db'}")
    assert client.get_model_version_by_alias("storyflower", "champion").run_id in before
    words = ["predict", "합격했어", "--model"]
    answers = {
        command(finished, sys.executable, "-m", "storyflower", *words, model)
        for model in ("models/classifier", "models:/storyflower@champion")
    }
    assert len(answers) == 1


@pytest.mark.slow
def test_a_second_clone_gives_the_same_bytes(make_repository, finished: Path) -> None:
    """All but the clock: in another folder, without DVC, all stages in one process, and with
    Python's sets and hashes in another order."""
    other = make_repository(num_epochs=8, dr_rate=0.1)
    assert other != finished
    command(other, sys.executable, "-c", IN_ONE_PROCESS, *STAGES, PYTHONHASHSEED="1")

    def content(root: Path) -> dict[str, bytes]:
        folders = ("models", "data/interim", "reports")
        files = [path for folder in folders for path in (root / folder).rglob("*")]
        timed = ("history.csv", "run.json", ".gitignore")  # the last is DVC's own
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in files
            if path.is_file() and path.name not in timed
        }

    first, second = content(finished), content(other)
    assert {"models/classifier/model.safetensors", "reports/metrics.json"} <= set(first)
    assert set(first) == set(second)
    assert [name for name in first if first[name] != second[name]] == []

    def history(root: Path) -> list[dict[str, str]]:
        with (root / "reports/history.csv").open(encoding="utf-8", newline="") as file:
            return [{**row, "seconds": ""} for row in csv.DictReader(file)]

    assert history(finished) == history(other)


@pytest.mark.slow
def test_git_tracks_no_more_than_it_should(finished: Path) -> None:
    """After `git add -A`, as people do it, with leftovers of a killed stage lying about."""

    def names() -> set[str]:
        return set(command(finished, "git", "ls-files", "-z").rstrip("\0").split("\0"))

    before = names()
    left = ["data/interim/dialogues.parquet.part", "reports/history.csv.part", "models/x.part/a"]
    for name in left:
        (finished / name).parent.mkdir(exist_ok=True)
        (finished / name).write_text("합격했어", encoding="utf-8")
    command(finished, "git", "add", "-A")
    tracked = names()
    command(finished, "git", "reset", "-q")
    for name in left:
        (finished / name).unlink()
    (finished / "models/x.part").rmdir()
    assert tracked - before == {
        "dvc.lock",
        "reports/metrics.json",
        *(f"{folder}/.gitignore" for folder in ("data/interim", "models", "reports")),
    }
    encoder = {name for name in tracked if name.startswith("encoders/tiny/")}
    code = {name for name in tracked if name.startswith("storyflower/serve/page/")}
    code |= {name for name in tracked if name.endswith((".py", ".yaml", ".gitignore"))}
    assert tracked - encoder - code == {
        ".dvc/config",
        ".dvcignore",
        "data/sample/표본_Training.xlsx",
        "data/sample/표본_Validation.xlsx",
        "dvc.lock",
        "reports/metrics.json",
    }
    for name in tracked - before:
        content = (finished / name).read_text(encoding="utf-8")
        assert not any(word in content for words in WORDS.values() for word in words), name


@pytest.mark.slow
def test_a_second_repro_runs_nothing_whatever_programs_leave(finished: Path) -> None:
    left = [finished / "storyflower/train" / name for name in LEFTOVERS]
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_text("left", encoding="utf-8")
    out = command(finished, "dvc", "repro")
    for file in left:
        file.unlink()
    assert "Running stage" not in out
    assert out.count("didn't change, skipping") == len(STAGES)


@pytest.mark.slow
def test_the_run_in_mlflow(finished: Path) -> None:
    (run_,) = mlflow_runs(finished)
    assert run_.info.status == "FINISHED"
    params = yaml.safe_load((finished / "params.yaml").read_text(encoding="utf-8"))
    resolved = {
        "learning_rate": 0.003,
        "optimizer": "adamw",
        "mask_rate": 0.0,
    }  # auto: the card's
    for key, value in {**Params.check(params).decisive(), **resolved}.items():
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
    assert names - {"validation"} == set(ARTIFACTS)  # which register adds
    assert not any((finished / ".storyflower/outbox").iterdir())


@pytest.mark.slow
def test_corpus_text_stays_out_of_mlflow(finished: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished / 'mlflow.db'}")
    (run_,) = mlflow_runs(finished)
    data = run_.data
    params = Params.load(finished / "params.yaml").decisive()
    corpus_params = set(params) | {"pretokenize", "tokenizer"}
    assert set(data.params) == corpus_params
    epoch = {"loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "tokens"}
    metrics = json.loads((finished / "reports/metrics.json").read_text(encoding="utf-8"))
    assert set(data.metrics) == epoch | {
        f"final_{key}" for key, value in metrics.items() if not isinstance(value, list)
    }
    said = [*data.params.values(), *data.tags.values(), run_.info.run_name]
    for given in run_.inputs.dataset_inputs:
        said += [str(given.dataset.to_dictionary()), *(tag.value for tag in given.tags)]
    for artifact in client.list_artifacts(run_.info.run_id):  # their names: test_the_run_in_mlflow
        path = Path(client.download_artifacts(run_.info.run_id, artifact.path))
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.suffix != ".png":
                said.append(file.read_bytes().decode("utf-8", "ignore"))
    # The database as a whole too: a text in a table that none of the above reads.
    said.append((finished / "mlflow.db").read_bytes().decode("utf-8", "ignore"))
    forms = [word for words in WORDS.values() for word in words]
    forms += [json.dumps(word)[1:-1] for word in forms]  # \\ud569\\uaca9
    for value in said:
        assert not any(form in value for form in forms), value[:200]


@pytest.mark.slow
def test_bad_input_stops_with_one_line_and_keeps_what_was_there(
    make_repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The bad row is the last one, so all of Training has been written before it is met."""
    root = make_repository()
    command(root, "dvc", "repro", "labels")
    outputs = ("data/interim/dialogues.parquet", "data/interim/labels.json", "reports/ingest.json")
    before = {name: (root / name).read_bytes() for name in outputs}
    files = {path for folder in ("data", "reports") for path in (root / folder).rglob("*")}
    book = root / "data/sample/표본_Validation.xlsx"
    good = book.read_bytes()
    rows = dialogue_rows(24, seed=2)
    rows[23][7] = 20220101
    write_workbook(book, rows)
    done = run(root, sys.executable, "-m", "stages.ingest")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "표본_Validation.xlsx" in line and "row 25" in line
    assert {name: (root / name).read_bytes() for name in outputs} == before
    assert {path for folder in ("data", "reports") for path in (root / folder).rglob("*")} == files

    # DVC takes a stage's outputs away before it runs it. The stage leaves nothing in their place.
    done = run(root, "dvc", "repro")
    assert done.returncode != 0 and line in done.stderr
    here = {path for folder in ("data", "reports") for path in (root / folder).rglob("*")}
    assert here <= files
    assert not any((root / name).exists() for name in outputs if "labels" not in name)
    command(root, "dvc", "checkout", *outputs)
    assert {name: (root / name).read_bytes() for name in outputs} == before
    book.write_bytes(good)
    assert "Running stage" not in command(root, "dvc", "repro", "labels")

    set_params(root, **TINY_PARAMS, warmup_ratio=1.5)
    monkeypatch.chdir(root)
    with pytest.raises(SystemExit) as stop:
        exit_with_line(train_stage.main)
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert said == "error: params.yaml: warmup_ratio must be a number in [0, 1], got 1.5\n"


IGNORED = {
    "data/aihub/내_Training.xlsx": True,
    "data/other/x.csv": True,
    "data/interim/dialogues.parquet.part": True,
    "data/interim/tokens.part/Training.ids.npy": True,
    "models/encoder.part/encoder/config.json": True,
    "reports/metrics.json.part": True,
    "encoders/mine/model.safetensors": True,
    "mlflow.db": True,
    "mlartifacts/1/a": True,
    ".storyflower/outbox/1/record.json": True,
    "dvc_plots/index.html": True,
    "data/sample/표본_Training.xlsx": False,
    "data/aihub.dvc": False,
    "encoders/mine.yaml": False,
    "encoders/mine.lock.yaml": False,
    "reports/metrics.json": False,
    "dvc.lock": False,
    # Each is ignored by the .gitignore that DVC writes beside it.
    "data/interim/.gitignore": False,
    "models/.gitignore": False,
    "reports/.gitignore": False,
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"encoder", "ingest"}))
def test_a_stage_before_those_that_it_needs(stage: str, tmp_path: Path) -> None:
    """Run by hand, as it stands in dvc.yaml."""
    set_params(tmp_path)
    done = run(tmp_path, sys.executable, "-m", f"stages.{stage}", PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_a_table_of_dialogues_that_is_damaged(tmp_path: Path) -> None:
    set_params(tmp_path)
    (tmp_path / "data/interim").mkdir(parents=True)
    (tmp_path / "data/interim/dialogues.parquet").write_bytes(b"PAR1")
    done = run(tmp_path, sys.executable, "-m", "stages.labels", PYTHONPATH=str(ROOT))
    assert done.stderr.startswith("error: data/interim/dialogues.parquet: ")
    assert done.stderr.endswith("; make it again with 'dvc repro'\n")


def test_what_git_ignores(tmp_path: Path) -> None:
    command(tmp_path, "git", "init", "-q")
    (tmp_path / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    for name in IGNORED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = {name: run(tmp_path, "git", "check-ignore", "-q", name).returncode for name in IGNORED}
    assert {name: code == 0 for name, code in names.items()} == IGNORED


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
    command(root, "dvc", "repro", "encoder")
    assert (root / "models/encoder/spiece.model").read_bytes() == (
        finished / "models/encoder/spiece.model"
    ).read_bytes()
    assert "Running stage" not in command(root, "dvc", "repro", "encoder")
    config = root / "encoders/mine/config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'), encoding="utf-8")
    assert "Running stage 'encoder'" in command(root, "dvc", "repro", "encoder")
    assert '"relu"' in (root / "models/encoder/config.json").read_text()


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, storyflower, stages.ingest; print({'torch', 'mlflow'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
