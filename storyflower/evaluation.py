"""Score the classifier on Validation, beside what it must beat.

Enters: the classifier's folder, the token cache, the table of dialogues, the history. Leaves:
metrics.json, the confusion matrix (csv for DVC, png), learning curves (png) and a table of
predictions. Only the predictions hold text; DVC caches them and git never sees them.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storyflower import baseline, metrics, model, pictures, scoring, tracking
from storyflower.device import choose
from storyflower.dialogues import class_names, read_split
from storyflower.errors import InputError
from storyflower.history import read_history
from storyflower.tensors import TokenTable
from storyflower.tokenizer import load_tokenizer


def evaluate(
    classifier: Path,
    tokens: Path,
    dialogues: Path,
    history: Path,
    record: Path,
    reports: Path,
    predictions: Path,
    *,
    target: str,
    device: str,
    precision: str,
    seed: int,
) -> dict[str, Any]:
    """Write the reports, add them to the MLflow run of `record`; return metrics.json's content."""
    reports.mkdir(parents=True, exist_ok=True)
    predictions.parent.mkdir(parents=True, exist_ok=True)
    network, document = model.load(classifier)
    names = tuple(document["labels"])
    placement = choose(device, precision)
    network.to(placement.device)
    table = TokenTable.load(tokens, "Validation")
    train = read_split(dialogues, "Training", ["text"])
    test = read_split(dialogues, "Validation", ["row", "text", "label", "fine"])
    train_labels = np.asarray(TokenTable.load(tokens, "Training").labels)
    actual = np.asarray(table.labels)
    if not len(test) == len(actual) or [names[i] for i in actual] != class_names(test, target):
        raise InputError(f"{tokens} and {dialogues} are of different runs; run 'dvc repro'")

    pad_id = load_tokenizer(classifier).pad_id
    probability = {
        "classifier": scoring.probabilities(network, table, placement, pad_id),
        "majority": baseline.majority(train_labels, len(test), len(names)),
        "tfidf_logistic_regression": baseline.tfidf_logistic_regression(
            train["text"].to_pylist(), train_labels, test["text"].to_pylist(), len(names)
        ),
    }
    scores = {
        name: metrics.summary(values, actual, names, seed) for name, values in probability.items()
    }
    difference = compare(
        probability["classifier"], probability["tfidf_logistic_regression"], actual, seed
    )
    result = {
        **scores["classifier"],
        "baselines": {
            name: {key: scores[name][key] for key in ("correct", "accuracy", "macro_f1", "loss")}
            for name in ("majority", "tfidf_logistic_regression")
        },
        "accuracy_minus_tfidf": difference,
        "verdict": verdict(difference, len(actual)),
    }
    write_json(result, reports / "metrics.json")

    predicted = probability["classifier"].argmax(axis=1)
    with (reports / "confusion.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["actual", "predicted"])
        writer.writerows((names[a], names[p]) for a, p in zip(actual, predicted, strict=True))
    counts = metrics.confusion(actual, predicted, len(names))
    pictures.confusion_matrix(counts, names, reports / "confusion.png")
    pictures.learning_curves(read_history(history), reports / "learning_curves.png")
    write_predictions(test, actual, probability["classifier"], names, predictions)

    run = tracking.Run(tracking.Record.load(record))
    run.log({f"final_{name}": value for name, value in flatten(result)})
    run.attach(
        *(reports / name for name in ("metrics.json", "confusion.png", "learning_curves.png")),
        history,
    )
    run.close()
    return result


def compare(
    ours: np.ndarray, theirs: np.ndarray, actual: np.ndarray, seed: int
) -> dict[str, float]:
    """Difference of two accuracies on the same rows, with its paired-bootstrap 95% interval."""
    hits = (ours.argmax(axis=1) == actual).astype(np.int64)
    hits -= theirs.argmax(axis=1) == actual
    low, high = metrics.bootstrap_mean(hits, seed)
    return {"value": hits.sum() / len(actual), "low": low, "high": high}


def verdict(difference: dict[str, float], rows: int) -> str:
    """One plain sentence on who is better."""
    points, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    numbers = (
        f"{points:+.1f} points of accuracy on {rows} rows, 95% interval {low:+.1f} to {high:+.1f}"
    )
    if low > 0:
        return f"The classifier is better than TF-IDF + logistic regression: {numbers}."
    if high < 0:
        return f"The classifier is worse than TF-IDF + logistic regression: {numbers}."
    return f"These rows cannot tell the classifier from TF-IDF + logistic regression: {numbers}."


def write_json(document: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_predictions(
    test: pa.Table, actual: np.ndarray, probability: np.ndarray, names: tuple[str, ...], path: Path
) -> None:
    """Parquet: row, text, actual, predicted, right, and one probability column a class."""
    predicted = probability.argmax(axis=1)
    columns = {
        "row": test["row"],
        "text": test["text"],
        "actual": [names[i] for i in actual],
        "predicted": [names[i] for i in predicted],
        "right": predicted == actual,
        **{f"p({name})": probability[:, i] for i, name in enumerate(names)},
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Numbers of a nested dict with dotted names, texts left out; per-class scores included."""
    leaves = []
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves += flatten(value, f"{prefix}{key}.")
        elif not isinstance(value, str):
            leaves.append((f"{prefix}{key}", float(value)))
    return leaves
