"""Counts → accuracy, F1, calibration, intervals. Pure functions of arrays.

Every score is whole counts divided once. Intervals are 95% percentile bootstraps over the scored
rows (Efron, 1979): they say how far the score would move with other rows of the same kind, not
with another training run.
"""

from typing import Any

import numpy as np

from storyflower.model.scoring import cross_entropy

RESAMPLES = 10_000
CALIBRATION_BINS = 15


def confusion(actual: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes): row is the actual class, column the predicted one."""
    flat = np.bincount(actual * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)


def per_class(counts: np.ndarray) -> dict[str, np.ndarray]:
    """precision, recall, f1 and count of each class, (classes,), from a confusion matrix.

    0 where a class was never predicted (precision) or never occurs (recall), as scikit-learn does.
    """
    hits = np.diag(counts).astype(np.float64)
    actual, predicted = counts.sum(axis=1), counts.sum(axis=0)
    return {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(actual, 1),
        "f1": 2 * hits / np.maximum(actual + predicted, 1),
        "count": actual,
    }


def macro_f1(counts: np.ndarray) -> float:
    """Mean F1 over the classes that occur or were predicted, as scikit-learn averages."""
    present = (counts.sum(axis=0) + counts.sum(axis=1)) > 0
    return float(per_class(counts)["f1"][present].mean())


def bootstrap_mean(values: np.ndarray, seed: int) -> tuple[float, float]:
    """95% bootstrap interval of the mean of small whole numbers (hits, or differences of hits).

    Drawing n rows with replacement and counting each value is one multinomial draw, so all
    resamples together take milliseconds however many rows there are.
    """
    kinds, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(
        len(values), counts / len(values), size=RESAMPLES
    )  # (resamples, kinds)
    low, high = np.percentile(draws @ kinds / len(values), [2.5, 97.5])
    return float(low), float(high)


def calibration_error(probabilities: np.ndarray, actual: np.ndarray) -> float:
    """Expected calibration error of (rows, classes) probabilities (Guo et al., 2017), 15 bins.

    The mean gap between how sure the model was and how often it was right.
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
    """All scores of probabilities (rows, classes) against class numbers (rows,)."""
    predicted = probabilities.argmax(axis=1)
    counts = confusion(actual, predicted, len(names))
    hits = (predicted == actual).astype(np.int64)
    low, high = bootstrap_mean(hits, seed)
    scores = per_class(counts)
    return {
        "rows": len(actual),
        "correct": int(hits.sum()),
        "accuracy": hits.sum() / len(actual),
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": macro_f1(counts),
        "loss": cross_entropy(probabilities, actual),
        "calibration_error": calibration_error(probabilities, actual),
        "classes": [
            {"name": name, **{key: values[i].item() for key, values in scores.items()}}
            for i, name in enumerate(names)
        ],
    }
