"""Scores against scikit-learn, and where it has none, against the plainest loop."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from storyflower.evaluate import metrics
from storyflower.model import scoring


def random_scores(seed: int, rows: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 probabilities (rows, classes), right more often than not, and actual classes."""
    rng = np.random.default_rng(seed)
    actual = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) * 2
    logits[np.arange(rows), actual] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), actual


@pytest.mark.parametrize("seed", range(5))
def test_cross_entropy(seed: int) -> None:
    probabilities, actual = random_scores(seed, rows=200, classes=6)
    precise = probabilities.astype(np.float64)
    precise /= precise.sum(axis=1, keepdims=True)
    expected = reference.log_loss(actual, precise, labels=range(6))
    assert scoring.cross_entropy(probabilities, actual) == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_of_an_impossible_class_is_finite() -> None:
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5]], dtype=np.float32)
    loss = scoring.cross_entropy(probabilities, np.array([1, 0]))
    assert loss == pytest.approx((-math.log(1e-38) + math.log(2)) / 2)


def plain_calibration_error(probabilities: np.ndarray, actual: np.ndarray) -> float:
    """Guo et al. (2017), equation 3, a row at a time."""
    bins: dict[int, list] = {}
    for row, label in zip(probabilities.tolist(), actual.tolist(), strict=True):
        confidence = max(row)
        bins.setdefault(min(int(confidence * 15), 14), []).append(
            (confidence, row.index(confidence) == label)
        )
    return sum(
        len(rows)
        / len(actual)
        * abs(sum(hit for _, hit in rows) / len(rows) - sum(sure for sure, _ in rows) / len(rows))
        for rows in bins.values()
    )


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(2, 12))
def test_calibration_error(seed: int, rows: int, classes: int) -> None:
    probabilities, actual = random_scores(seed, rows, classes)
    expected = plain_calibration_error(probabilities.astype(np.float64), actual)
    measured = metrics.calibration_error(probabilities.astype(np.float64), actual)
    assert measured == pytest.approx(expected, abs=1e-9)


def test_calibration_error_of_known_cases() -> None:
    certain = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (10, 1))
    assert metrics.calibration_error(certain, np.zeros(10, dtype=int)) == 0
    assert metrics.calibration_error(certain, np.ones(10, dtype=int)) == 1
    # 1.0 belongs to the last bin and has none of its own.
    sure = np.array([[1.0, 0.0], [0.95, 0.05]])
    assert metrics.calibration_error(sure, np.array([1, 0])) == pytest.approx(0.95 / 2)
    right_in_7_of_10 = np.array([0] * 7 + [1] * 3)
    assert metrics.calibration_error(certain, right_in_7_of_10) == pytest.approx(0.3)


def plain_interval(values: list[int], resamples: int) -> tuple[float, float]:
    """Efron's percentile bootstrap, as one would write it by hand."""
    rng = random.Random(0)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(resamples))
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


@pytest.mark.parametrize(
    "values",
    [
        [1] * 140 + [0] * 60,  # hits
        [1] * 40 + [0] * 150 + [-1] * 10,  # differences of hits
        [1] * 3 + [0] * 5,
    ],
)
def test_bootstrap_interval(values: list[int]) -> None:
    low, high = metrics.bootstrap_mean(np.array(values), seed=1)
    expected_low, expected_high = plain_interval(values, resamples=4000)
    step = 1 / len(values)  # a mean moves by whole steps
    assert low == pytest.approx(expected_low, abs=max(0.008, step))
    assert high == pytest.approx(expected_high, abs=max(0.008, step))
    assert low < np.mean(values) < high


def test_bootstrap_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for seed in range(100):
        low, high = metrics.bootstrap_mean(rng.binomial(1, 0.7, size=400), seed)
        covered += low <= 0.7 <= high
    assert 88 <= covered <= 100


def test_bootstrap_depends_on_its_seed_alone() -> None:
    values = np.random.default_rng(0).integers(-1, 2, 30_011)
    assert metrics.bootstrap_mean(values, 7) == metrics.bootstrap_mean(values, 7)
    assert metrics.bootstrap_mean(values[::-1], 7) == metrics.bootstrap_mean(values, 7)
    assert metrics.bootstrap_mean(values, 8) != metrics.bootstrap_mean(values, 7)


@pytest.mark.parametrize("value", [0, 1])
def test_bootstrap_of_equal_values(value: int) -> None:
    assert metrics.bootstrap_mean(np.full(50, value), seed=0) == (value, value)


def test_a_class_that_is_never_predicted_and_one_that_never_occurs() -> None:
    """Worked out by hand: 4 rows of a, 2 of b, none of c, none of d; d is not predicted either."""
    actual = np.array([0, 0, 0, 0, 1, 1])
    predicted = np.array([0, 0, 0, 2, 0, 0])
    scores = metrics.summary(np.eye(4)[predicted], actual, tuple("abcd"), seed=0)
    table = [
        [row[key] for key in ("precision", "recall", "f1", "count")] for row in scores["classes"]
    ]
    assert table == [
        [pytest.approx(3 / 5), pytest.approx(3 / 4), pytest.approx(2 / 3), 4],
        [0, 0, 0, 2],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    assert (scores["correct"], scores["rows"]) == (3, 6)
    assert scores["macro_f1"] == pytest.approx((2 / 3) / 3)  # over a, b and c


def test_summary() -> None:
    probabilities, actual = random_scores(11, rows=500, classes=4)
    names = ("기쁨", "분노", "불안", "슬픔")
    predicted = probabilities.argmax(axis=1)
    scores = metrics.summary(probabilities, actual, names, seed=5)
    assert json.loads(json.dumps(scores)) == scores  # plain numbers, no numpy
    assert scores["rows"] == 500
    assert scores["correct"] == sum(predicted == actual)
    assert scores["accuracy"] == reference.accuracy_score(actual, predicted)
    assert scores["accuracy_low"] < scores["accuracy"] < scores["accuracy_high"]
    assert scores["macro_f1"] == pytest.approx(
        reference.f1_score(actual, predicted, average="macro")
    )
    assert scores["loss"] == scoring.cross_entropy(probabilities, actual)
    assert scores["calibration_error"] == metrics.calibration_error(probabilities, actual)
    recall = reference.recall_score(actual, predicted, average=None)
    assert [row["name"] for row in scores["classes"]] == list(names)
    assert [row["recall"] for row in scores["classes"]] == pytest.approx(list(recall))
    assert sum(row["count"] for row in scores["classes"]) == 500
