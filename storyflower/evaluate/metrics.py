"""Probabilities and labels → accuracy, F1, calibration, intervals. Pure functions of arrays.

Accuracy is one division of whole counts. Intervals are 95% percentile bootstraps over the scored
rows (Efron, 1979): they show how much the score would vary with other rows of the same kind, not
with another training run.
"""

from typing import Any

import numpy as np

from storyflower.model.scoring import cross_entropy

RESAMPLES = 10_000
CALIBRATION_BINS = 15
# A comparison needs this many rows on which only one of the two models is right: with fewer, the
# bootstrap interval is too narrow to trust.
FEWEST_APART = 10


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


def calibration_error(probabilities: np.ndarray, actual: np.ndarray) -> float:
    """Expected calibration error of (rows, classes) probabilities (Guo et al., 2017), 15 bins.

    The mean gap between the model's confidence and how often it was right.
    """
    confidence = probabilities.max(axis=1)
    hit = probabilities.argmax(axis=1) == actual
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    sure = np.bincount(bins, weights=confidence, minlength=CALIBRATION_BINS)
    right = np.bincount(bins, weights=hit, minlength=CALIBRATION_BINS)
    return float(np.abs(sure - right).sum() / len(actual))


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
