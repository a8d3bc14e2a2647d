"""Score the classifier and its baselines on Validation.

In: the classifier's folder, the token cache, the table of dialogues, the history.
Out: metrics.json, the confusion matrix and the coverage curve (csv for DVC, png), the reliability
diagram and the learning curves (png), and a table of predictions. Only the predictions hold text;
they are in DVC's cache, never in git.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.metrics import confusion_matrix

from storyflower.common import repository
from storyflower.common.errors import InputError
from storyflower.common.files import json_text, replacing
from storyflower.evaluate import baseline, metrics, plots
from storyflower.interim import checkpoint_folders
from storyflower.interim.dialogues import batches, texts
from storyflower.interim.history import read_history
from storyflower.interim.labels import check_numbers
from storyflower.interim.tokens import TokenArrays, check_tokenizer
from storyflower.model import scoring
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.device import Placement, choose
from storyflower.model.folder import digest, load_classifier, need
from storyflower.tracking.record import Record
from storyflower.tracking.run import Run

OTHER_NAMES = {
    "majority": "always answering the most frequent class",
    "tfidf_logistic_regression": "TF-IDF + logistic regression",
}
NOTES = {  # corpus → a note on its limits
    "sample": "Language models wrote the corpus sample: these figures are no evidence about people."
}


def evaluate(
    *,
    classifier: Path,
    tokens: Path,
    dialogues: Path,
    history: Path,
    record: Path,
    reports: Path,
    predictions: Path,
    target: str,
    device: str,
    precision: str,
    seed: int,
    checkpoint_dir: str,
) -> dict[str, Any]:
    """Write the reports, add them to the MLflow run of `record`; return metrics.json's content.

    Discards the training's checkpoints at the end: DVC has recorded the outputs by then.
    """
    for path in (record, history):
        need(path.parent, [path.name], "'dvc repro' makes it")
    epochs = read_history(history)
    try:
        trained = Record.load(record)
    except (ValueError, TypeError):
        raise InputError(f"{record}: damaged; make it again with 'dvc repro'") from None
    # Opened first, because importing MLflow takes seconds; a context closes it after errors, too.
    with Run(trained) as run:
        network, document = load_classifier(classifier)
        scored = digest(classifier)
        names = tuple(document["labels"])
        placement = choose(device, precision)
        network.to(placement.device)
        table = TokenArrays.load(tokens, "Validation")
        train_labels = np.asarray(TokenArrays.load(tokens, "Training").labels)
        actual = np.asarray(table.labels)
        check_tokenizer(tokens, classifier)
        check_numbers(names, classifier, table=dialogues, tokens=tokens, target=target)

        # Before the classifier, so that TF-IDF's memory is freed first.
        others = of_baselines(dialogues, train_labels, len(actual), len(names))
        by_temperature = of_classifier(network, table, placement, document["temperature"])
        probability = list(by_temperature.values())[-1]  # (rows, classes)
        baselines = {
            name: compare(
                name,
                other=other,
                classifier=probability,
                actual=actual,
                names=names,
                seed=seed,
            )
            for name, other in others.items()
        }
        result = metrics.summary(probability, actual, names, seed)
        if document["temperature"] is not None:
            before = metrics.calibration_error(by_temperature["as trained"], actual)
            result["temperature"] = document["temperature"]
            result["calibration_error_as_trained"] = before
        # Repeated here for the table of `dvc exp show`, which does not show lists.
        tfidf = baselines["tfidf_logistic_regression"]
        result["tfidf_accuracy"] = tfidf["accuracy"]
        result["accuracy_minus_tfidf"] = tfidf["difference"]
        result["baselines"] = list(baselines.values())
        result["notes"] = [NOTES[corpus]] if (corpus := run.record.experiment) in NOTES else []

        scores = reports / "metrics.json"
        matrix = reports / "confusion.png"
        curves = reports / "learning_curves.png"
        diagram = reports / "reliability.png"
        coverage = reports / "coverage.png"
        predicted = probability.argmax(axis=1)
        counts = confusion_matrix(actual, predicted, labels=range(len(names)))
        bins = {name: metrics.reliability(rows, actual) for name, rows in by_temperature.items()}
        shares = metrics.coverage(probability, actual)
        with replacing() as beside:
            beside(scores).write_text(json_text(result), encoding="utf-8")
            write_pairs(names, actual, predicted, beside(reports / "confusion.csv"))
            plots.confusion_matrix(counts, names, beside(matrix))
            plots.learning_curves(epochs, beside(curves))
            plots.reliability_diagram(bins, beside(diagram))
            write_shares(shares, len(actual), beside(reports / "coverage.csv"))
            plots.coverage_curve(shares, len(actual), beside(coverage))
            write_predictions(
                dialogues,
                actual=actual,
                probability=probability,
                names=names,
                classifier=scored,
                path=beside(predictions),
            )

        scalars = {key: value for key, value in result.items() if not isinstance(value, list)}
        run.log_results({f"final_{key}": value for key, value in scalars.items()})
        run.attach(scores, matrix, curves, diagram, coverage, history)
    root = checkpoint_folders.root_of(checkpoint_dir, repository.main_root())
    checkpoint_folders.discard(root, run.record.tags.get("fingerprint", ""))
    return result


def of_baselines(
    dialogues: Path, train_labels: np.ndarray, rows: int, classes: int
) -> dict[str, np.ndarray]:
    """Each baseline's probabilities for Validation, (rows, classes), in OTHER_NAMES' order."""
    every = -(-len(train_labels) // baseline.MAX_TEXTS)
    train = list(texts(dialogues, "Training", every))
    if every > 1:
        print(f"note: TF-IDF + logistic regression learns from {len(train)} Training texts")
    return {
        "majority": baseline.majority(train_labels, rows, classes),
        "tfidf_logistic_regression": baseline.tfidf_logistic_regression(
            train, train_labels[::every], texts(dialogues, "Validation"), classes
        ),
    }


def of_classifier(
    network: EmotionClassifier,
    table: TokenArrays,
    placement: Placement,
    temperature: float | None,
) -> dict[str, np.ndarray]:
    """The classifier's probabilities, (rows, classes): as trained, then by its temperature, if any.

    The last are its answers.
    """
    if temperature is None:
        return {"as trained": scoring.probabilities(network, table, placement)}
    logits = torch.from_numpy(scoring.logits(network, table, placement))
    return {
        "as trained": scoring.softmax(logits).numpy(),
        f"temperature {temperature:g}": scoring.softmax(logits, temperature).numpy(),
    }


def validation(dialogues: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Validation's rows, a batch at a time: all of them may not fit in memory."""
    parts = batches(dialogues, columns)
    return (rows.select(columns) for split, rows in parts if split == "Validation")


def compare(
    name: str,
    *,
    other: np.ndarray,
    classifier: np.ndarray,
    actual: np.ndarray,
    names: tuple[str, ...],
    seed: int,
) -> dict[str, Any]:
    """A baseline's scores, and the classifier's accuracy minus the baseline's on the same rows.

    `other` and `classifier` are probabilities (rows, classes), `actual` class numbers (rows,).
    `low` and `high` are the 95% interval of the difference, from a paired bootstrap.
    """
    scores = metrics.summary(other, actual, names, seed)
    # 1 if only the classifier is right, -1 if only the baseline is right, else 0
    gains = (classifier.argmax(axis=1) == actual).astype(np.int64)
    gains -= other.argmax(axis=1) == actual
    low, high = metrics.bootstrap_mean(gains, seed)
    result = {
        "name": name,
        **{key: scores[key] for key in ("correct", "accuracy", "macro_f1", "loss")},
        "difference": gains.sum() / len(actual),
        "low": low,
        "high": high,
    }
    absent = [row["name"] for row in scores["classes"] if not row["count"]]
    return {**result, "verdict": verdict(result, gains, absent)}


def verdict(result: dict[str, Any], gains: np.ndarray, absent: list[str]) -> str:
    """One plain sentence on which model is better, and one on classes missing in Validation."""
    other = OTHER_NAMES[result["name"]]
    numbers = (
        f"{100 * result['difference']:+.1f} points of accuracy on {len(gains)} rows, "
        f"95% interval {100 * result['low']:+.1f} to {100 * result['high']:+.1f}"
    )
    apart = int(np.count_nonzero(gains))
    if apart < metrics.FEWEST_APART and result["low"] * result["high"] > 0:
        # With so few differing rows, the bootstrap interval is too narrow to trust.
        sentence = (
            f"No verdict against {other}: only one of the two is right on {apart} of "
            f"{len(gains)} rows, and {metrics.FEWEST_APART} are needed."
        )
    elif result["low"] > 0:
        sentence = f"The classifier is better than {other}: {numbers}."
    elif result["high"] < 0:
        sentence = f"The classifier is worse than {other}: {numbers}."
    else:
        sentence = f"These rows cannot tell the classifier from {other}: {numbers}."
    if absent:
        sentence += f" Validation has no dialogue of {', '.join(absent)}: nothing is said of them."
    return sentence


def write_pairs(
    names: tuple[str, ...], actual: np.ndarray, predicted: np.ndarray, path: Path
) -> None:
    """Write the CSV for DVC's confusion plot: actual and predicted label, one row per dialogue."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["actual", "predicted"])
        writer.writerows((names[a], names[p]) for a, p in zip(actual, predicted, strict=True))


def write_shares(shares: list[tuple[float, int, int]], rows: int, path: Path) -> None:
    """Write coverage.csv from metrics.coverage: threshold, share answered, accuracy of those."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["threshold", "coverage", "accuracy"])
        writer.writerows([at, answered / rows, right / answered] for at, answered, right in shares)


def write_predictions(
    dialogues: Path,
    *,
    actual: np.ndarray,
    probability: np.ndarray,
    names: tuple[str, ...],
    classifier: str,
    path: Path,
) -> None:
    """Write Parquet: file, row, text, actual, predicted, right, and a probability for each class.

    Its metadata has the digest of the `classifier`, so that it cannot pass for another one's.
    """
    predicted = probability.argmax(axis=1)
    path.touch(mode=0o600)
    writer, start = None, 0
    for rows in validation(dialogues, ["file", "row", "text"]):
        here = slice(start, start + len(rows))
        start += len(rows)
        columns = {
            "file": rows["file"],
            "row": rows["row"],
            "text": rows["text"],
            "actual": [names[i] for i in actual[here]],
            "predicted": [names[i] for i in predicted[here]],
            "right": predicted[here] == actual[here],
            **{f"p({name})": probability[here, i] for i, name in enumerate(names)},
        }
        table = pa.table(columns).replace_schema_metadata({"classifier": classifier})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    writer.close()
