"""Versions of a classifier in MLflow: what is kept, which one is the champion, what is refused."""

import io
import json
import os
import shutil
import socket
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from storyflower import Classifier, registry
from storyflower.__main__ import main
from storyflower.common.errors import InputError, exit_with_line
from storyflower.model.folder import digest
from storyflower.registry import Registration, resolve
from storyflower.tracking import mlflow
from storyflower.tracking.record import CLASSIFIER_TAG, KEY_TAG, Record, new_record
from tests.support import ROOT, change_head

CANARY = "남몰래적은일기"
ROWS = 200


@pytest.fixture(scope="module", autouse=True)
def quick_databases() -> Iterator[None]:
    """MLflow's migrations commit some hundred times; no test here cuts the power."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def hurry(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hurry)
    yield
    event.remove(Engine, "connect", hurry)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A main repository's root whose MLflow database is made once, which takes seconds."""
    root = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        mlflow.connect(registry.EXPERIMENT, root)
    return root


@pytest.fixture(scope="module")
def variants(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Classifiers that differ in their weights; number 0 is the trained one."""
    folder = tmp_path_factory.mktemp("variants")

    def variant(number: int) -> Path:
        path = folder / str(number)
        if not path.exists():
            shutil.copytree(classifier, path)
            change_head(path, lambda head: [value.add_(1e-3 * number) for value in head.values()])
        return path

    return variant


def predictions(
    folder: Path, right: np.ndarray, path: Path, texts: list[str] | None = None
) -> Path:
    """What evaluate writes with the classifier of a folder."""
    texts = texts or [f"{CANARY} {row}" for row in range(len(right))]
    table = pa.table({"text": texts, "actual": ["기쁨"] * len(right), "right": right})
    pq.write_table(table.replace_schema_metadata({"classifier": digest(folder)}), path)
    return path


def right(count: int, skip: int = 0) -> np.ndarray:
    """Rows from `skip` on, `count` of them, are right."""
    return np.isin(np.arange(ROWS), np.arange(skip, skip + count))


@pytest.fixture
def register(root: Path, tmp_path: Path) -> Callable[..., Registration]:
    def register(
        folder: Path | str, hits: np.ndarray | Path, name: str, **more: Any
    ) -> Registration:
        scored = (
            hits if isinstance(hits, Path) else predictions(folder, hits, tmp_path / "p.parquet")
        )
        settings = {"record": tmp_path / "none.json", "root": root, **more}
        return registry.register(model=str(folder), name=name, predictions=scored, **settings)

    return register


def client(root: Path) -> Any:
    return mlflow.client_of_store(root)


def champion_of(root: Path, name: str) -> str:
    return str(client(root).get_model_version_by_alias(name, "champion").version)


# Champion or not


@pytest.mark.parametrize(
    ("theirs", "ours", "moves", "says"),
    [
        (
            right(100),
            right(130),
            True,
            "accuracy is +15.0 points from the old champion's on the same",
        ),
        (right(130), right(100), False, "accuracy is -15.0 points from the old champion's"),
        (right(100), right(100), False, "+0.0 points"),
        (right(100), right(104, skip=50), False, "and its lower end is not above 0"),
        # The interval excludes 0, and these few rows still say nothing.
        (right(100), right(109), False, "is right on 9 rows, and 10 are needed"),
        (right(100), right(110), True, "and its lower end is above 0"),
    ],
)
def test_the_alias_moves_only_to_what_is_better(
    root: Path, variants, register, theirs, ours, moves: bool, says: str
) -> None:
    name = f"case-{theirs.sum()}-{ours.sum()}"
    first = register(variants(0), theirs, name)
    assert (first.version, first.new, first.champion) == (1, True, True)
    assert first.sentence == "version 1 is now the champion: there was none"
    second = register(variants(1), ours, name)
    assert (second.version, second.new, second.champion) == (2, True, moves)
    start = "version 2 is now" if moves else "version 1 stays"
    assert second.sentence.startswith(f"{start} the champion: ") and says in second.sentence
    assert champion_of(root, name) == ("2" if moves else "1")
    assert client(root).get_model_version(name, "2").description == second.sentence


def test_a_second_time_changes_nothing(root: Path, variants, register) -> None:
    register(variants(0), right(100), "again")
    runs = client(root).search_runs(
        [client(root).get_experiment_by_name("registered").experiment_id]
    )
    again = register(shutil.copytree(variants(0), root / "copy"), right(100), "again")
    assert again == Registration(
        "again", 1, False, True, "version 1 stays the champion: it was so before"
    )
    assert len(client(root).search_model_versions("name = 'again'")) == 1
    after = client(root).search_runs(
        [client(root).get_experiment_by_name("registered").experiment_id]
    )
    assert len(after) == len(runs)


def test_a_kill_before_the_alias_is_made_good(root: Path, variants, register, monkeypatch) -> None:
    from mlflow import MlflowClient

    register(variants(0), right(100), "killed")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, "set_registered_model_alias", lambda *_: interrupt())
        register(variants(1), right(150), "killed")
    assert champion_of(root, "killed") == "1"
    assert register(variants(1), right(150), "killed").champion
    assert champion_of(root, "killed") == "2"


def interrupt() -> None:
    raise KeyboardInterrupt


def test_two_at_once_make_one_version(root: Path, variants, tmp_path: Path, register) -> None:
    scored = predictions(variants(2), right(100), tmp_path / "both.parquet")
    done: list[Registration] = []
    threads = [
        threading.Thread(target=lambda: done.append(register(variants(2), scored, "both")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(each.new for each in done) == [False, True]
    assert len(client(root).search_model_versions("name = 'both'")) == 1


def test_what_was_scored_on_other_rows_is_not_compared(
    root: Path, variants, register, tmp_path: Path, interim: Path
) -> None:
    """Until the champion has been scored on the new rows, too."""
    register(variants(0), right(100), "rows")
    texts = ["합격했어", "심장이 뛰어"] * 20  # the trained one calls every second one 기쁨
    scored = predictions(variants(1), np.ones(40, bool), tmp_path / "new.parquet", texts)
    with pytest.raises(InputError, match="version 1, the champion, was scored on other rows"):
        register(variants(1), scored, "rows")
    assert len(client(root).search_model_versions("name = 'rows'")) == 1

    again = register("models:/rows@champion", scored, "rows")
    assert (again.version, again.new, again.champion) == (1, False, True)
    second = register(variants(1), scored, "rows")
    assert (
        second.champion and "+50.0 points" in second.sentence and "same 40 rows" in second.sentence
    )


@pytest.mark.parametrize("changed", ["text", "actual", "order"])
def test_other_rows_are_other_texts_labels_or_orders(
    variants, register, tmp_path: Path, changed: str
) -> None:
    register(variants(0), right(100), f"changed-{changed}")
    file = predictions(variants(1), right(150), tmp_path / "p.parquet")
    table = pq.read_table(file)
    if changed == "order":
        table = table.take(list(range(ROWS))[::-1])
    else:
        values = table[changed].to_pylist()
        column = table.column_names.index(changed)
        table = table.set_column(column, changed, pa.array(["분노", *values[1:]]))
    pq.write_table(table, file)
    with pytest.raises(InputError, match="on other rows"):
        register(variants(1), file, f"changed-{changed}")


# What a version holds


@pytest.fixture
def version(root: Path, variants, register) -> tuple[Path, Path]:
    """(a classifier, the folder that MLflow keeps of it)."""
    register(variants(3), right(100), "held")
    return variants(3), resolve("models:/held/1", root).parents[1]


def test_code_and_safetensors_and_no_pickle(version: tuple[Path, Path]) -> None:
    folder, logged = version
    files = {path.relative_to(logged).as_posix() for path in logged.rglob("*") if path.is_file()}
    parts = {f"artifacts/{digest(folder)}/{path.name}" for path in folder.iterdir()}
    code = {
        f"code/storyflower/{path.relative_to(ROOT / 'storyflower').as_posix()}"
        for path in (ROOT / "storyflower").rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    about = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "pyfunc_model.py"}
    about |= {"input_example.json", "serving_input_example.json"}
    assert files == parts | code | about
    for name in files:
        if name.endswith(".safetensors"):
            assert load_file(logged / name)
        elif not name.endswith("spiece.model"):
            (logged / name).read_text(encoding="utf-8")  # what is text is no pickle


def test_what_an_environment_needs_is_pinned(version: tuple[Path, Path]) -> None:
    listed = (version[1] / "requirements.txt").read_text(encoding="utf-8").split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    predicts = {
        "".join(c for c in line.split(";")[0] if c not in "<>=!~.0123456789")
        for line in project["dependencies"]
    }
    assert {line.split("==")[0] for line in listed} == predicts | {"mlflow", "pandas"}
    for line in listed:
        name, number = line.split("==")
        assert number == installed(name).split("+")[0]


def test_signature_and_example(version: tuple[Path, Path], variants) -> None:
    from mlflow.models import Model

    about = Model.load(str(version[1]))
    assert [(c.name, c.type.name) for c in about.signature.inputs] == [("text", "string")]
    labels = Classifier.load(variants(3)).labels
    expected = [("label", "string"), *((f"p_{name}", "double") for name in labels)]
    assert [(c.name, c.type.name) for c in about.signature.outputs] == expected
    example = json.loads((version[1] / "input_example.json").read_text(encoding="utf-8"))
    ((sentence,),) = example["data"]
    assert sentence == registry.EXAMPLE


def test_no_text_of_validation_reaches_mlflow(root: Path, version: tuple[Path, Path]) -> None:
    kept = [
        root / "mlflow.db",
        *(path for path in (root / "mlartifacts").rglob("*") if path.is_file()),
    ]
    assert len(kept) > 50
    for path in kept:
        content = path.read_bytes()
        assert CANARY.encode() not in content and json.dumps(CANARY)[1:-1].encode() not in content


def test_it_belongs_to_the_run_that_trained_it(root: Path, variants, register, tmp_path) -> None:
    dialogues = tmp_path / "dialogues.parquet"
    dialogues.touch()
    tags = {CLASSIFIER_TAG: digest(variants(0))}
    record = new_record(experiment="sample", params={"seed": 1}, tags=tags, dataset=dialogues)
    record.status, record.end = "FINISHED", record.start + 1000
    record.save(tmp_path / "run.json")
    register(variants(0), right(100), "run", record=tmp_path / "run.json")
    other = register(variants(1), right(100), "run", record=tmp_path / "run.json")
    first, second = (client(root).get_model_version("run", n).run_id for n in ("1", "2"))
    run = client(root).get_run(first)
    assert run.data.tags[KEY_TAG] == Record.load(tmp_path / "run.json").key
    assert (run.info.status, run.info.end_time) == ("FINISHED", record.end)
    assert other.version == 2 and KEY_TAG not in client(root).get_run(second).data.tags


# What is refused


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        ("none", "p.parquet: not found; 'dvc repro' makes it"),
        ("damaged", "p.parquet: damaged"),
        ("other", "p.parquet: not made with this classifier"),
        ("older", "p.parquet: not made with this classifier"),
        ("folder", "not found; train a classifier"),
        ("name", "--name: expected letters"),
    ],
)
def test_what_register_refuses(
    root: Path, variants, register, tmp_path: Path, spoil: str, complaint: str
) -> None:
    file, folder, name = tmp_path / "p.parquet", variants(0), "refused"
    if spoil != "none":
        predictions(variants(1) if spoil == "other" else folder, right(100), file)
    if spoil == "damaged":
        file.write_bytes(b"PAR1")
    if spoil == "older":
        pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    if spoil == "folder":
        folder = tmp_path / "nothing"
    if spoil == "name":
        name = "a/b"
    with pytest.raises(InputError, match=complaint.replace("(", r"\(")):
        register(folder, file, name)
    assert not client(root).search_model_versions("name = 'refused'")


def line_of(capfd: pytest.CaptureFixture, *words: str) -> str:
    """The one line of a command that fails."""
    with pytest.raises(SystemExit) as stop:
        exit_with_line(lambda: main(words))
    out, err = capfd.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (1, "", 1), err
    return err


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}", "sqlite:///{}.db"])
def test_an_mlflow_that_is_not_there(
    classifier: Path, tmp_path: Path, monkeypatch, capfd, address: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(port))
    models = ["--model", "models:/storyflower@champion"]
    assert line_of(capfd, "predict", "합격했어", *models).startswith("error: MLflow: ")
    assert not list(tmp_path.glob("*.db"))
    if address.startswith("http"):
        (tmp_path / "data/interim").mkdir(parents=True)
        predictions(classifier, right(9), tmp_path / "data/interim/predictions.parquet")
        said = line_of(capfd, "register", "--model", str(classifier))
        assert said.startswith("error: MLflow: ") and "refused" in said


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("models:/held@nobody", "models:/held@nobody: not in sqlite:///"),
        ("models:/held/99", "models:/held/99: not in sqlite:///"),
        ("models:/unknown@champion", "models:/unknown@champion: not in sqlite:///"),
        ("models:/held", "--model: expected a folder, models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models://held/1", "--model: expected a folder"),
        ("models:/foreign/1", "models:/foreign/1: not registered with"),
    ],
)
def test_a_version_that_is_not_there(
    root: Path, version, tmp_path: Path, monkeypatch, capfd, model: str, complaint: str
) -> None:
    if "foreign" in model and not client(root).search_registered_models("name = 'foreign'"):
        client(root).create_registered_model("foreign")
        client(root).create_model_version("foreign", str(tmp_path))
    monkeypatch.chdir(root)
    assert line_of(capfd, "predict", "합격했어", "--model", model).startswith(f"error: {complaint}")


# Finding it again


def test_predict_takes_a_registered_model(root: Path, version, monkeypatch, capfd) -> None:
    monkeypatch.chdir(root)
    answers = []
    for model in (str(version[0]), "models:/held@champion", "models:/held/1"):
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        main(["predict", "합격했어", "--json", "--model", model])
        answers.append(capfd.readouterr().out)
    assert len(set(answers)) == 1 and '"row": 1' in answers[0]


def test_a_folder_needs_no_mlflow(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert resolve("models/classifier", tmp_path) == Path("models/classifier")


def test_without_mlflow(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.chdir(tmp_path)
    said = line_of(capfd, "predict", "합격했어", "--model", "models:/storyflower@champion")
    assert "has no package mlflow; type, in StoryFlower's repository: pip install " in said


def test_files_that_are_not_those_registered(root: Path, variants, register) -> None:
    register(variants(4), right(100), "spoilt")
    folder = resolve("models:/spoilt@champion", root)
    assert digest(folder) == digest(variants(4))
    shutil.copyfile(variants(5) / "head.safetensors", folder / "head.safetensors")
    with pytest.raises(InputError, match="not the classifier that was registered"):
        resolve("models:/spoilt@champion", root)


def test_from_a_server_it_is_fetched_once(root: Path, variants, register, monkeypatch) -> None:
    """A download that breaks off leaves nothing behind."""
    from mlflow import MlflowClient

    register(variants(0), right(100), "remote")
    here = resolve("models:/remote@champion", root)
    asked: list[str] = []

    def download(artifact_uri: str, dst_path: str, **_: object) -> None:
        asked.append(artifact_uri)
        shutil.copytree(here, Path(dst_path, here.name))
        if len(asked) == 1:
            raise OSError("the server went away")

    place = "mlflow-artifacts:/1/models/m-1/artifacts"
    monkeypatch.setattr(MlflowClient, "get_model_version_download_uri", lambda *_: place)
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", download)
    with pytest.raises(InputError, match="MLflow: the server went away"):
        resolve("models:/remote@champion", root)
    kept = root / ".storyflower/models"
    assert [path.name for path in kept.iterdir() if path.is_dir()] == []
    for model in ("models:/remote@champion", "models:/remote/1"):
        assert resolve(model, root) == kept / digest(variants(0))
    assert asked == [f"{place}/artifacts/{digest(variants(0))}"] * 2
