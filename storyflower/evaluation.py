"""Score the classifier on Validation, beside what it must beat.

Enters: the classifier's folder, the token cache, the table of dialogues, the history. Leaves:
metrics.json, the confusion matrix (csv for DVC, png), learning curves (png) and a table of
predictions. Only the predictions hold text; DVC caches them and git never sees them.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storyflower import baseline, metrics, model, pictures, scoring, tracking
from storyflower.device import choose
from storyflower.dialogues import class_names, read_split
from storyflower.documents import json_text, replacing
from storyflower.errors import InputError
from storyflower.history import read_history
from storyflower.tensors import TokenTable


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
    # Early, for MLflow takes seconds to import; a context, for it is closed whatever happens.
    with tracking.Run(tracking.Record.load(record)) as run:
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

        probability = {
            "classifier": scoring.probabilities(network, table, placement),
            "majority": baseline.majority(train_labels, len(test), len(names)),
            "tfidf_logistic_regression": baseline.tfidf_logistic_regression(
                train["text"].to_pylist(), train_labels, test["text"].to_pylist(), len(names)
            ),
        }
        ours = metrics.summary(probability["classifier"], actual, names, seed)
        baselines = [
            against(name, probability, actual, names, seed)
            for name in ("majority", "tfidf_logistic_regression")
        ]
        result = {
            **ours,
            # Two figures for the table of `dvc exp show`, which leaves lists out.
            "tfidf_accuracy": baselines[1]["accuracy"],
            "accuracy_minus_tfidf": baselines[1]["difference"],
            "baselines": baselines,
        }
        outputs = tuple(
            reports / name
            for name in ("metrics.json", "confusion.csv", "confusion.png", "learning_curves.png")
        )
        with replacing(*outputs, predictions) as (numbers, pairs, matrix, curves, rows):
            numbers.write_text(json_text(result), encoding="utf-8")
            predicted = probability["classifier"].argmax(axis=1)
            write_pairs(names, actual, predicted, pairs)
            counts = metrics.confusion(actual, predicted, len(names))
            pictures.confusion_matrix(counts, names, matrix)
            pictures.learning_curves(read_history(history), curves)
            write_predictions(test, actual, probability["classifier"], names, rows)

        scalars = {key: value for key, value in result.items() if not isinstance(value, list)}
        run.log_results({f"final_{key}": value for key, value in scalars.items()})
        run.attach(*(path for path in outputs if path.suffix != ".csv"), history)
    return result


def against(
    name: str,
    probability: dict[str, np.ndarray],
    actual: np.ndarray,
    names: tuple[str, ...],
    seed: int,
) -> dict[str, Any]:
    """A baseline's scores, and the classifier's accuracy minus its own on the same rows.

    `low` and `high` bound the difference: the paired-bootstrap 95% interval.
    """
    theirs = metrics.summary(probability[name], actual, names, seed)
    hits = (probability["classifier"].argmax(axis=1) == actual).astype(np.int64)
    hits -= probability[name].argmax(axis=1) == actual
    low, high = metrics.bootstrap_mean(hits, seed)
    difference = hits.sum() / len(actual)
    return {
        "name": name,
        **{key: theirs[key] for key in ("correct", "accuracy", "macro_f1", "loss")},
        "difference": difference,
        "low": low,
        "high": high,
        "verdict": verdict(name, difference, low, high, len(actual)),
    }


def verdict(name: str, difference: float, low: float, high: float, rows: int) -> str:
    """One plain sentence on who is better."""
    other = {"majority": "always answering the most frequent class"}.get(
        name, "TF-IDF + logistic regression"
    )
    numbers = (
        f"{100 * difference:+.1f} points of accuracy on {rows} rows, "
        f"95% interval {100 * low:+.1f} to {100 * high:+.1f}"
    )
    if low > 0:
        return f"The classifier is better than {other}: {numbers}."
    if high < 0:
        return f"The classifier is worse than {other}: {numbers}."
    return f"These rows cannot tell the classifier from {other}: {numbers}."


def write_pairs(
    names: tuple[str, ...], actual: np.ndarray, predicted: np.ndarray, path: Path
) -> None:
    """CSV for DVC's confusion plot: one row a dialogue, actual and predicted label."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["actual", "predicted"])
        writer.writerows((names[a], names[p]) for a, p in zip(actual, predicted, strict=True))


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
    path.touch(mode=0o600)
    pq.write_table(pa.table(columns), path, compression="zstd")
