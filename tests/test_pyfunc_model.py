"""The registered model as MLflow runs it: in a program, and as a service on loopback."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storyflower import Classifier, pyfunc_model, registry
from storyflower.common.errors import InputError
from storyflower.model.folder import digest
from tests.support import environment_of

CANARY = "남몰래적은일기"
TEXTS = ["심장이 뛰어", None, "합격했어 웃음이 나", "", " \u3164", float("nan"), "따지고 싶어"]


@pytest.fixture(scope="module")
def logged(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the MLflow model, as register logs it."""
    folder = tmp_path_factory.mktemp("pyfunc") / "model"
    labels = list(Classifier.load(classifier).labels)
    registry.save_pyfunc(folder, model=classifier, classifier=digest(classifier), labels=labels)
    return folder


@pytest.fixture
def load(logged: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Loads the model in a process that has loaded none."""
    from mlflow.pyfunc import load_model

    monkeypatch.setattr(pyfunc_model, "_loaded", {})
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which MLflow adds the model's code
    return lambda: load_model(str(logged))


def test_it_answers_as_predict_does(load, classifier: Path) -> None:
    found = load().predict(pd.DataFrame({"text": pd.Series(TEXTS, dtype=object)}))
    loaded = Classifier.load(classifier)
    assert list(found) == ["label", *(f"p_{name}" for name in loaded.labels)]
    assert len(found) == len(TEXTS)
    for text, row in zip(TEXTS, found.to_dict("records"), strict=True):
        if not isinstance(text, str) or not text.strip(" \u3164"):
            assert set(row.values()) == {None}
            continue
        (alone,) = loaded.predict([text])
        assert row.pop("label") == alone.label
        expected = {f"p_{name}": p for name, p in alone.probabilities.items()}
        assert row == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("texts", [["합격했어"], [], [None], [None, ""], ["합격했어", None]])
def test_a_row_for_every_row(load, texts: list) -> None:
    index = [f"row {n}" for n in range(len(texts))]
    given = pd.DataFrame({"text": pd.Series(texts, index=index, dtype=object)})
    found = load().predict(given)
    assert list(found.index) == index
    assert [isinstance(label, str) for label in found["label"]] == [bool(text) for text in texts]
    if texts == ["합격했어"]:
        assert {found[name].dtype for name in found if name != "label"} == {np.dtype(np.float64)}


@pytest.mark.parametrize("value", [5, 1.5, ["합격했어"], b"text", {"a": 1}])
def test_what_is_no_text(load, value: object) -> None:
    given = pd.DataFrame({"text": pd.Series(["합격했어", value], dtype=object)})
    with pytest.raises(InputError, match="row 1: text is .*, not a string"):
        load().predict(given)


def test_a_process_reads_it_once(load, capfd: pytest.CaptureFixture) -> None:
    """As on Spark, where MLflow loads the model once a task."""
    for _ in range(3):
        load().predict(pd.DataFrame({"text": ["합격했어"]}))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("storyflower")]
    assert len(lines) == 1 and f"loaded in process {os.getpid()}" in lines[0]


def test_a_process_keeps_two(classifier: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pyfunc_model, "_loaded", {})
    folders = []
    for number in range(3):
        folder = shutil.copytree(classifier, tmp_path / str(number))
        document = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        (folder / "classifier.json").write_text(json.dumps({**document, "number": number}))
        folders.append(folder.rename(tmp_path / digest(folder)))
    first, second, third = (pyfunc_model.load_once(folder) for folder in folders)
    assert pyfunc_model.load_once(folders[1]) is second
    assert pyfunc_model.load_once(folders[2]) is third
    assert pyfunc_model.load_once(folders[0]) is not first


def test_a_classifier_that_is_another(classifier: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(classifier, tmp_path / ("0" * 64))
    with pytest.raises(InputError, match="not the classifier that was registered"):
        pyfunc_model.load_once(folder)


# As a service, for real


@pytest.fixture(scope="module")
def service(classifier: Path, tmp_path_factory) -> Iterator[tuple[Callable[..., Any], Path]]:
    """(posts a payload to /invocations, the service's log) of the registered champion."""
    root = tmp_path_factory.mktemp("service")
    table = pa.table({"text": ["가"], "actual": ["기쁨"], "right": [True]})
    table = table.replace_schema_metadata({"classifier": digest(classifier)})
    pq.write_table(table, root / "predictions.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        registry.register(
            model=str(classifier),
            name="storyflower",
            predictions=root / "predictions.parquet",
            record=root / "none.json",
            root=root,
        )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["models", "serve", "--env-manager", "local", "-m", "models:/storyflower@champion"]
    settings = {"MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}"}
    (root / "elsewhere").mkdir()  # where no storyflower lies: the model brings its own
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            ["mlflow", *words, "--port", str(port)],
            cwd=root / "elsewhere",
            env=environment_of(**settings),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def post(payload: object, kind: str = "application/json") -> tuple[int, Any]:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", data=data, headers={"Content-Type": kind}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read(), parse_constant=not_json)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    try:
        for _ in range(1200):
            assert process.poll() is None, (root / "log").read_text(encoding="utf-8")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=10).close()
                break
            except OSError:
                time.sleep(0.2)
        yield post, root / "log"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def not_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def split(*texts: object) -> dict:
    return {"dataframe_split": {"columns": ["text"], "data": [[text] for text in texts]}}


@pytest.mark.slow
def test_the_service(service: tuple[Callable[..., Any], Path], classifier: Path) -> None:
    post, log = service
    status, answer = post(split("합격했어 웃음이 나", None, f"{CANARY} 심장이 뛰어", "", "😀" * 9))
    assert status == 200
    first, null, third, empty, emoji = answer["predictions"]
    expected = Classifier.load(classifier).predict(["합격했어 웃음이 나"])[0]
    assert first.pop("label") == expected.label == "기쁨"
    probabilities = {f"p_{name}": p for name, p in expected.probabilities.items()}
    assert first == pytest.approx(probabilities, abs=1e-5)
    assert third["label"] and emoji["label"]
    assert null == empty == dict.fromkeys(null)
    assert post(split(None)) == (200, {"predictions": [null]})
    assert post(split()) == (200, {"predictions": []})
    records = {"dataframe_records": [{"text": "합격했어"}, {"text": None}]}
    assert [row["label"] for row in post(records)[1]["predictions"]] == ["기쁨", None]
    assert post("text\n합격했어\n".encode(), "text/csv")[0] == 200

    for payload, kind in [
        (f"{{{CANARY}".encode(), "application/json"),
        (CANARY.encode("cp949"), "application/json"),
        ([CANARY], "application/json"),
        ({"texts": [CANARY]}, "application/json"),
        ({"dataframe_records": [{"other": CANARY}]}, "application/json"),
        (split(CANARY, 5), "application/json"),
        (split([CANARY]), "application/json"),
        ({"dataframe_split": {"columns": ["text"], "data": [[CANARY, 1]]}}, "application/json"),
    ]:
        assert post(payload, kind)[0] == 400, payload
    assert post(CANARY.encode(), "text/plain")[0] == 415
    assert post(split("합격했어"))[0] == 200  # it is still there

    said = log.read_bytes()
    assert b"127.0.0.1" in said and said.count(b"storyflower: classifier ") == 1
    for form in (CANARY.encode(), json.dumps(CANARY)[1:-1].encode(), CANARY.encode("cp949")):
        assert form not in said
    assert repr(CANARY.encode())[2:-1].encode() not in said
