"""The reports on Validation: figures, verdicts, pictures with Korean in them."""

import csv
import json
import logging
import os
import re
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from storyflower.common.errors import InputError
from storyflower.evaluate import baseline, metrics, plots
from storyflower.evaluate import evaluate as evaluate_module
from storyflower.interim.labels import LabelIndex
from storyflower.tracking import mlflow, record
from tests.support import WORDS, change_head

SEED = 42
REPORTS = {
    *("metrics.json", "confusion.csv", "confusion.png", "learning_curves.png"),
    *("reliability.png", "coverage.csv", "coverage.png"),
}


@pytest.fixture(scope="module", autouse=True)
def no_mlflow() -> Iterator[None]:
    """It has tests of its own, and a new database takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow, "push", lambda *_: None)
        yield


def evaluate(root: Path, interim: Path, classifier: Path, reports: str) -> dict:
    """evaluate() into root/reports; the predictions go to root/predictions.parquet."""
    record.new_record(
        experiment="sample", params={}, tags={}, dataset=interim / "dialogues.parquet"
    ).save(root / "run.json")
    return evaluate_module.evaluate(
        classifier=classifier,
        tokens=interim / "tokens",
        dialogues=interim / "dialogues.parquet",
        history=interim / "history.csv",
        record=root / "run.json",
        reports=root / reports,
        predictions=root / "predictions.parquet",
        target="major",
        device="cpu",
        precision="fp32",
        seed=SEED,
        checkpoint_dir="auto",
    )


@pytest.fixture(scope="module")
def scored(
    interim: Path, classifier: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict]:
    """(a folder with reports/ and predictions.parquet, what evaluate returned)."""
    root = tmp_path_factory.mktemp("scored")
    erring = shutil.copytree(classifier, root / "classifier")

    def forget_the_second_class(head: dict[str, torch.Tensor]) -> None:
        for values in head.values():
            values[1] = values[0]

    change_head(erring, forget_the_second_class)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
            patch.delenv(name)
        patch.chdir(root)
        return root, evaluate(root, interim, erring, "reports")


def test_metrics_json(scored: tuple[Path, dict]) -> None:
    root, returned = scored
    found = json.loads((root / "reports/metrics.json").read_text(encoding="utf-8"))
    assert found == returned
    assert set(found) == {
        "rows",
        "correct",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "macro_f1",
        "loss",
        "calibration_error",
        "classes",
        "tfidf_accuracy",
        "accuracy_minus_tfidf",
        "baselines",
        "notes",
    }
    assert found["rows"] == 24 and found["accuracy"] == found["correct"] / 24
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    assert [set(row) for row in found["classes"]] == [
        {"name", "precision", "recall", "f1", "count"}
    ] * 3
    assert [row["count"] for row in found["classes"]] == [8, 8, 8]
    assert found["classes"][1]["recall"] == 0
    assert 8 < found["correct"] <= 16
    majority, tfidf = found["baselines"]
    assert (majority["name"], tfidf["name"]) == ("majority", "tfidf_logistic_regression")
    for row in (majority, tfidf):
        assert set(row) == {
            *("name", "correct", "accuracy", "macro_f1", "loss"),
            *("difference", "low", "high", "verdict"),
        }
        assert row["accuracy"] == row["correct"] / 24
        assert row["difference"] == pytest.approx(found["accuracy"] - row["accuracy"])
    assert found["tfidf_accuracy"] == tfidf["accuracy"]
    assert found["accuracy_minus_tfidf"] == tfidf["difference"]
    assert majority["correct"] == 8


def test_the_interval_of_the_difference_is_paired(scored: tuple[Path, dict], interim: Path) -> None:
    """Resampled as it is meant: the same rows for both, row by row."""
    root, result = scored
    rows = pq.read_table(root / "predictions.parquet").to_pylist()
    ours = np.array([row["right"] for row in rows]).astype(int)
    names = LabelIndex.load(interim / "labels.json")
    train = pq.read_table(interim / "dialogues.parquet", filters=[("split", "==", "Training")])
    train_labels = names.encode(train["label"].to_pylist())
    actual = names.encode([row["actual"] for row in rows])
    probability = {
        "majority": baseline.majority(train_labels, 24, 3),
        "tfidf_logistic_regression": baseline.tfidf_logistic_regression(
            train["text"].to_pylist(), train_labels, [row["text"] for row in rows], 3
        ),
    }
    draws = np.random.default_rng(0).integers(0, 24, (4000, 24))
    for row in result["baselines"]:
        theirs = (probability[row["name"]].argmax(axis=1) == actual).astype(int)
        assert row["correct"] == theirs.sum()
        low, high = np.percentile((ours - theirs)[draws].mean(axis=1), [2.5, 97.5])
        assert row["low"] == pytest.approx(low, abs=1 / 24)
        assert row["high"] == pytest.approx(high, abs=1 / 24)


def test_the_difference_of_two_that_err_on_the_same_rows_is_certain() -> None:
    """Two models equal but for one row in 100: unpaired intervals would be 20 points wide."""
    rng = np.random.default_rng(0)
    actual = rng.integers(0, 3, 100)
    guess = np.where(rng.random(100) < 0.6, actual, (actual + 1) % 3)
    better = guess.copy()
    better[np.flatnonzero(guess != actual)[0]] = actual[np.flatnonzero(guess != actual)[0]]
    row = compare(better, guess, actual)
    assert row["difference"] == pytest.approx(0.01)
    assert row["low"] == 0 and row["high"] <= 0.04


def compare(
    ours: np.ndarray, theirs: np.ndarray, actual: np.ndarray, name: str = "majority"
) -> dict:
    """What evaluate says of two that answer with these class numbers."""
    return evaluate_module.compare(
        name,
        other=np.eye(3)[theirs],
        classifier=np.eye(3)[ours],
        actual=actual,
        names=tuple(WORDS),
        seed=SEED,
    )


NAMES = {
    "majority": "always answering the most frequent class",
    "tfidf_logistic_regression": "TF-IDF + logistic regression",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("only_ours", "only_theirs", "start"),
    [
        (40, 10, "The classifier is better than {}: +10.0 points of accuracy on 300 rows, 95%"),
        (10, 40, "The classifier is worse than {}: -10.0 points of accuracy on 300 rows, 95%"),
        (16, 13, "These rows cannot tell the classifier from {}: +1.0 points"),
        (10, 0, "The classifier is better than {}: +3.3 points"),
        # The bootstrap's interval excludes 0 here, and these few rows still say nothing.
        (9, 0, "No verdict against {}: only one of the two is right on 9 of 300 rows, and 10 are"),
        (0, 6, "No verdict against {}: only one of the two is right on 6 of 300 rows"),
        (2, 1, "These rows cannot tell the classifier from {}: +0.3 points"),
        (0, 0, "These rows cannot tell the classifier from {}: +0.0 points"),
    ],
)
def test_verdict(only_ours: int, only_theirs: int, start: str, name: str) -> None:
    actual = np.arange(300) % 3
    ours, theirs = actual.copy(), actual.copy()
    theirs[:only_ours] = (actual[:only_ours] + 1) % 3
    ours[only_ours : only_ours + only_theirs] += 1
    assert compare(ours % 3, theirs, actual, name)["verdict"].startswith(start.format(NAMES[name]))


def test_verdict_names_the_classes_that_validation_lacks() -> None:
    """Two rows of one class, both answered right where the majority is wrong."""
    actual = np.zeros(2, np.int64)
    verdict = compare(actual, actual + 1, actual)["verdict"]
    assert verdict.startswith("No verdict against always answering the most frequent class")
    assert verdict.endswith("Validation has no dialogue of 분노, 불안: nothing is said of them.")


def test_confusion_csv_and_predictions_tell_the_same(scored: tuple[Path, dict]) -> None:
    root, result = scored
    with (root / "reports/confusion.csv").open(encoding="utf-8", newline="") as file:
        pairs = list(csv.reader(file))
    assert pairs[0] == ["actual", "predicted"]
    rows = pq.read_table(root / "predictions.parquet").to_pylist()
    assert pairs[1:] == [[row["actual"], row["predicted"]] for row in rows]
    assert sum(actual == predicted for actual, predicted in pairs[1:]) == result["correct"]
    assert set(rows[0]) == {
        *("file", "row", "text", "actual", "predicted", "right"),
        *(f"p({name})" for name in WORDS),
    }


def test_coverage_csv(scored: tuple[Path, dict]) -> None:
    """Against the table of predictions, a threshold at a time."""
    root, result = scored
    rows = pq.read_table(root / "predictions.parquet").to_pylist()
    sure = [max(row[f"p({name})"] for name in WORDS) for row in rows]
    with (root / "reports/coverage.csv").open(encoding="utf-8", newline="") as file:
        found = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert found[0] == {"threshold": 0, "coverage": 1, "accuracy": result["accuracy"]}
    assert [row["threshold"] for row in found] == [step / 100 for step in range(len(found))]
    assert len(found) == min(100, int(max(sure) * 100) + 1)
    for row in found:
        answered = [
            each["right"] for each, p in zip(rows, sure, strict=True) if p >= row["threshold"]
        ]
        assert row["coverage"] == len(answered) / 24
        assert row["accuracy"] == sum(answered) / len(answered)


def test_a_temperature_before_and_after(
    scored: tuple[Path, dict], interim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As predict does, evaluate divides by it; the reports say how it was before."""
    root, plain = scored
    warm = shutil.copytree(root / "classifier", tmp_path / "classifier")
    document = json.loads((warm / "classifier.json").read_text(encoding="utf-8"))
    (warm / "classifier.json").write_text(json.dumps(document | {"temperature": 3.0}))
    monkeypatch.chdir(tmp_path)
    found = evaluate(tmp_path, interim, warm, "reports")
    assert (found["temperature"], found["accuracy"]) == (3.0, plain["accuracy"])
    assert found["calibration_error_as_trained"] == pytest.approx(plain["calibration_error"])
    assert found["calibration_error"] != pytest.approx(plain["calibration_error"], abs=0.01)
    before, after = (
        np.array([[row[f"p({name})"] for name in WORDS] for row in table.to_pylist()])
        for table in map(pq.read_table, (root / "predictions.parquet", "predictions.parquet"))
    )
    expected = before ** (1 / 3)
    assert after == pytest.approx(expected / expected.sum(axis=1, keepdims=True), abs=1e-5)
    pictures = [(folder / "reports/reliability.png").read_bytes() for folder in (root, tmp_path)]
    assert pictures[0] != pictures[1]


def test_only_the_predictions_hold_text(scored: tuple[Path, dict]) -> None:
    root, _ = scored
    assert stat.S_IMODE((root / "predictions.parquet").stat().st_mode) == 0o600
    assert {path.name for path in (root / "reports").iterdir()} == REPORTS
    for name in REPORTS:
        content = (root / "reports" / name).read_bytes()
        assert not any(word.encode() in content for words in WORDS.values() for word in words)


def test_equal_input_makes_equal_bytes(
    scored: tuple[Path, dict], interim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = scored
    monkeypatch.chdir(root)
    evaluate(root, interim, root / "classifier", "again")
    for name in REPORTS:
        first, second = ((root / folder / name).read_bytes() for folder in ("reports", "again"))
        assert first == second, name


@pytest.mark.parametrize("split", ["Training", "Validation"])
def test_outputs_of_two_runs_are_not_mixed(
    interim: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.chdir(tmp_path)
    mixed = tmp_path / "mixed"
    shutil.copytree(interim / "tokens", mixed / "tokens")
    labels = np.load(mixed / f"tokens/{split}.labels.npy")
    np.save(mixed / f"tokens/{split}.labels.npy", labels[::-1])
    for name in ("dialogues.parquet", "history.csv"):
        shutil.copyfile(interim / name, mixed / name)
    with pytest.raises(InputError, match="are of different runs; run 'dvc repro'"):
        evaluate(tmp_path, mixed, classifier, "reports")
    assert not list((tmp_path / "reports").glob("*"))
    (mixed / "tokens/made_by.json").write_text('{"spiece.model": "of another"}', encoding="utf-8")
    with pytest.raises(
        InputError, match="was not made with the tokenizer and card of .*; run 'dvc repro'"
    ):
        evaluate(tmp_path, mixed, classifier, "reports")


HEADER = "epoch,loss,train_accuracy,test_loss,test_accuracy,seconds,tokens\n"


@pytest.mark.parametrize(
    "content", ["", HEADER, "epoch,loss\n1,0.5\n", f"{HEADER}1,a,0,0,0,0,0\n", f"{HEADER}1,0.5\n"]
)
def test_a_damaged_history_is_one_line_before_anything_is_scored(
    interim: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate_module, "of_baselines", None)
    for name in ("tokens", "dialogues.parquet"):
        (tmp_path / name).symlink_to(interim / name)
    (history := tmp_path / "history.csv").write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        evaluate(tmp_path, tmp_path, classifier, "reports")
    assert str(caught.value) == f"{history}: damaged; make it again with 'dvc repro'"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "a"}'])
def test_a_damaged_record_is_one_line(
    interim: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(record.Record, "save", lambda _, path: path.write_text(content))
    with pytest.raises(InputError) as caught:
        evaluate(tmp_path, interim, classifier, "reports")
    assert str(caught.value) == f"{tmp_path}/run.json: damaged; make it again with 'dvc repro'"


@pytest.fixture
def strict(caplog: pytest.LogCaptureFixture):
    """A glyph that the font lacks, or a font that is not found, is an error."""
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.filterwarnings("error", message="Glyph .* missing from font")
        yield
        assert not caplog.records


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("rows", [1, 500])
def test_reliability_and_coverage(rows: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    actual = rng.integers(0, 6, rows)
    curves = {}
    for name, scale in {"as trained": 1.0, "temperature 2.5": 0.4}.items():
        logits = scale * (rng.normal(size=(rows, 6)) * 2 + 4 * np.eye(6)[actual])
        curves[name] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    bins = {name: metrics.reliability(each, actual) for name, each in curves.items()}
    plots.reliability_diagram(bins, tmp_path / "reliability.png")
    shares = metrics.coverage(curves["as trained"], actual)
    plots.coverage_curve(shares, rows, tmp_path / "coverage.png")
    for name in ("reliability.png", "coverage.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def drawn(draw: Callable[..., None], *arguments: object, path: Path) -> bytes:
    draw(*arguments, path)
    picture = path.read_bytes()
    assert picture.startswith(b"\x89PNG")
    return picture


def korean_classes(count: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """(counts, names); every name has syllables of its own, and the first class never occurs."""
    counts = np.random.default_rng(0).integers(0, 50, (count, count))
    counts[0] = 0
    return counts, tuple(f"{chr(0xAC00 + 97 * n)}정/{chr(0xD7A3 - 97 * n)}한" for n in range(count))


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("classes", [2, 6, 20, 21, 60])
def test_confusion_matrix_of_korean_classes(classes: int, tmp_path: Path) -> None:
    """60 is what `target: fine` makes."""
    picture = drawn(plots.confusion_matrix, *korean_classes(classes), path=tmp_path / "one.png")
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert 300 < height <= width < 4000


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("name", ["$\\frac{$", "긴 이름 " * 2000])
def test_confusion_matrix_of_any_label(name: str, tmp_path: Path) -> None:
    """Text between dollar signs is no formula, and a text as a label does not fill the picture."""
    picture = drawn(plots.confusion_matrix, np.eye(2, dtype=int), ("가", name), path=tmp_path / "a")
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert 300 < height < 1200 and 300 < width < 1600


@pytest.mark.parametrize("classes", [6, 21])  # with numbers in the cells, and without
def test_equal_counts_make_equal_pictures(classes: int, tmp_path: Path) -> None:
    counts, names = korean_classes(classes)
    one, two, other = (
        drawn(plots.confusion_matrix, each, names, path=tmp_path / "a.png")
        for each in (counts, counts, counts.T)
    )
    assert one == two != other


COLUMNS = ("loss", "test_loss", "train_accuracy", "test_accuracy")


def curves(epochs: int, scale: float) -> list[dict[str, float]]:
    return [
        {"epoch": n, **{name: scale * (n + at) / 40 for at, name in enumerate(COLUMNS)}}
        for n in range(1, epochs + 1)
    ]


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(("epochs", "scale"), [(1, 1), (30, 1), (30, 1e-7)])
def test_learning_curves(epochs: int, scale: float, tmp_path: Path) -> None:
    """Losses of 1e-7 make an axis with a minus sign in its exponent."""
    drawn(plots.learning_curves, curves(epochs, scale), path=tmp_path / "one.png")


def test_each_column_is_drawn(tmp_path: Path) -> None:
    history = curves(3, 1)
    one, two = (drawn(plots.learning_curves, history, path=tmp_path / "a.png") for _ in range(2))
    assert one == two
    for name in COLUMNS:
        history[0][name] += 0.5
        assert one != drawn(plots.learning_curves, history, path=tmp_path / "a.png"), name
        history[0][name] -= 0.5


def test_the_numbers_that_are_printed_are_those_of_metrics() -> None:
    """A verdict's figures are the ones beside it."""
    rng = np.random.default_rng(0)
    actual, ours, theirs = rng.integers(0, 3, (3, 300))
    row = compare(np.where(rng.random(300) < 0.5, actual, ours), theirs, actual)
    points, low, high = (float(value) for value in re.findall(r"[+-]\d+\.\d", row["verdict"]))
    assert (points, low, high) == pytest.approx(
        tuple(100 * row[key] for key in ("difference", "low", "high")), abs=0.051
    )
