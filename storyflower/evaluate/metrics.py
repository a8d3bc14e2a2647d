"""Probabilities and labels → accuracy, F1, calibration, intervals. Pure functions of arrays.

Accuracy is one division of whole counts. Intervals are 95% percentile bootstraps over the scored
rows (Efron, 1979): they show how much the score would vary with other rows of the same kind, not
with another training run.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from storyflower.model.scoring import cross_entropy

RESAMPLES = 10_000
CALIBRATION_BINS = 15


def bootstrap_mean(values: np.ndarray, seed: int) -> tuple[float, float]:
    """95% bootstrap interval of the mean of small whole numbers (hits, or differences of hits).

    Drawing n rows with replacement and counting each value is one multinomial draw. So all
    resamples together take milliseconds, for any number of rows.
    """
    kinds, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(
        len(values), counts / len(values), size=RESAMPLES
    )  # (resamples, kinds)
    low, high = np.percentile(draws @ kinds / len(values), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Reliability:
    """Rows in CALIBRATION_BINS bins of equal width by confidence, the highest probability."""

    rows: np.ndarray  # (bins,): how many
    sure: np.ndarray  # (bins,): sum of their confidences
    right: np.ndarray  # (bins,): how many were right


def reliability(probabilities: np.ndarray, actual: np.ndarray) -> Reliability:
    """How often (rows, classes) probabilities were right, bin by bin."""
    confidence = probabilities.max(axis=1)
    hit = probabilities.argmax(axis=1) == actual
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    sums = (np.bincount(bins, values, CALIBRATION_BINS) for values in (None, confidence, hit))
    return Reliability(*sums)


def calibration_error(probabilities: np.ndarray, actual: np.ndarray) -> float:
    """Expected calibration error of (rows, classes) probabilities (Guo et al., 2017), 15 bins.

    The mean gap between the model's confidence and how often it was right.
    """
    bins = reliability(probabilities, actual)
    return float(np.abs(bins.sure - bins.right).sum() / len(actual))


def coverage(probabilities: np.ndarray, actual: np.ndarray) -> list[tuple[float, int, int]]:
    """(threshold, answered, right) for 0, 0.01, … 0.99, as far as a row is answered.

    A row is answered if its highest probability is at least the threshold, as in predict.
    """
    confidence = probabilities.max(axis=1)
    hit = probabilities.argmax(axis=1) == actual
    kept = ((step / 100, confidence >= step / 100) for step in range(100))
    return [(at, int(rows.sum()), int(hit[rows].sum())) for at, rows in kept if rows.any()]


def summary(
    probabilities: np.ndarray, actual: np.ndarray, names: tuple[str, ...], seed: int
) -> dict[str, Any]:
    """All scores of probabilities (rows, classes) against class numbers (rows,).

    Precision is 0 for a class that was never predicted, and recall is 0 for a class that never
    occurs. macro_f1 is the mean over the classes that occur or were predicted.
    """
    # Not imported at the top: scikit-learn takes a second to import.
    from sklearn.metrics import f1_score, precision_recall_fscore_support

    predicted = probabilities.argmax(axis=1)
    hits = (predicted == actual).astype(np.int64)
    low, high = bootstrap_mean(hits, seed)
    scores = precision_recall_fscore_support(
        actual, predicted, labels=range(len(names)), zero_division=0
    )
    return {
        "rows": len(actual),
        "correct": int(hits.sum()),
        "accuracy": hits.sum() / len(actual),
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": float(f1_score(actual, predicted, average="macro", zero_division=0)),
        "loss": cross_entropy(probabilities, actual),
        "calibration_error": calibration_error(probabilities, actual),
        "classes": [
            {
                "name": name,
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "count": int(count),
            }
            for name, precision, recall, f1, count in zip(names, *scores, strict=True)
        ],
    }
