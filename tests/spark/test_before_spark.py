"""What python -m storyflower spark refuses before it starts Java; these need no pyspark."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from storyflower import registry, spark
from storyflower.__main__ import main
from storyflower.common.errors import InputError
from storyflower.model.folder import digest

PYSPARK = "has no package pyspark; type: pip install -r requirements-spark.txt"


def refused(**values: str) -> str:
    given = {"source": "in.parquet", "column": "text", "output": "out", "model": "m", **values}
    with pytest.raises(InputError) as error:
        spark.score(**given)
    return str(error.value)


def java(folder: Path, script: str) -> str:
    """A JAVA_HOME whose java is a shell script."""
    program = folder / "bin/java"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    return str(folder)


@pytest.fixture
def with_pyspark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark.importlib.util, "find_spec", lambda _: object())


def test_pyspark_is_missing(monkeypatch):
    monkeypatch.setattr(spark.importlib.util, "find_spec", lambda _: None)
    assert PYSPARK in refused()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (None, "holds no Java; Spark needs 17 or newer; on Debian: apt-get install openjdk-17"),
        ("exit 1", "holds no Java"),
        ("echo 'openjdk version \"11.0.2\" 2019-01-15' >&2", "Java is 11; Spark needs 17"),
        ("echo 'java version \"1.8.0_391\"' >&2", "Java is 8; Spark needs 17"),
    ],
)
def test_java_is_missing_or_old(with_pyspark, monkeypatch, tmp_path, script, expected):
    monkeypatch.setenv("JAVA_HOME", java(tmp_path, script) if script else str(tmp_path))
    assert expected in refused()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("models:/storyflower@champion", "no such database; set MLFLOW_TRACKING_URI"),
        ("here", "here: no MLflow model; python -m storyflower register makes one"),
        ("nowhere", "nowhere: "),
    ],
)
def test_the_model_is_missing(with_pyspark, monkeypatch, tmp_path, model, expected):
    monkeypatch.setenv("JAVA_HOME", java(tmp_path, "echo 'openjdk version \"17.0.1\"' >&2"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    line = refused(model=model)
    assert expected in line and "\n" not in line


@pytest.mark.parametrize("given", [[], ["--column=글"]])
def test_the_column_that_the_classifier_was_trained_on(
    with_pyspark, monkeypatch, classifier, tmp_path, given
):
    own, model = tmp_path / "own", tmp_path / "model"
    shutil.copytree(classifier, own)
    document = json.loads((own / "classifier.json").read_text(encoding="utf-8"))
    document["params"]["text_columns"] = ["본문", "제목"]
    (own / "classifier.json").write_text(json.dumps(document), encoding="utf-8")
    labels = document["labels"]
    registry.save_pyfunc(model, model=own, classifier=digest(own), labels=labels)
    monkeypatch.setenv("JAVA_HOME", java(tmp_path, "echo 'openjdk version \"17.0.1\"' >&2"))
    monkeypatch.setattr(spark, "session", lambda *_: contextlib.nullcontext())
    columns = []

    def score_in(_: None, *, column: str, **options: object) -> spark.Scored:
        columns.append(column)
        return spark.Scored(1, 0)

    monkeypatch.setattr(spark, "score_in", score_in)
    main(["spark", f"--model={model}", "--input=a", "--output=b", *given])
    assert columns == ["글" if given else "본문"]


@pytest.mark.parametrize(
    ("option", "code", "expected"),
    [
        ("--conf=spark.task.cpus", 1, "error: --conf spark.task.cpus: expected KEY=VALUE\n"),
        ("--partitions=0", 1, "error: --partitions: expected 1 or more\n"),
        ("--nonsense", 2, "an argument is not known"),
    ],
)
def test_options(option, code, expected):
    words = [sys.executable, "-m", "storyflower", "spark", "--input=a", "--output=b", option]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == code and expected in done.stderr and done.stdout == ""
