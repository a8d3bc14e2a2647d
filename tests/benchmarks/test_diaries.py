"""The diaries that the rules are compared on, and the rules."""

import numpy as np
import pytest

from benchmarks.diaries import COLUMNS, RULES, Diary, Parts, draw, table

BY_CLASS = {label: np.arange(20 * label, 20 * label + 20) for label in range(4)}


@pytest.mark.parametrize("title", COLUMNS)
def test_drawn_diaries(title: str) -> None:
    one, counts = COLUMNS[title]
    rng = np.random.default_rng(0)
    for count in counts * 20:
        rows, label = draw(rng, BY_CLASS, count, one=one)
        assert len(set(rows.tolist())) == count
        votes = np.bincount(rows // 20, minlength=4)
        assert votes[label] == votes.max() and (votes == votes.max()).sum() == 1
        assert ((votes > 0).sum() == 1) == one


def test_the_rules() -> None:
    sizes = np.array([12, 4])
    parts = Parts(np.array([[0.9, 0.1], [0.2, 0.8]]), sizes)
    assert parts.weighted() == pytest.approx(
        np.array([0.9 * 10 + 0.2 * 2, 0.1 * 10 + 0.8 * 2]) / 12
    )
    assert parts.mean() == pytest.approx([0.55, 0.45])
    assert (
        parts.largest().tolist() == parts.surest().tolist() == parts.first().tolist() == [0.9, 0.1]
    )
    logits = np.log(parts.rows)
    for found, weights in (
        (parts.of_logits(), [0.5, 0.5]),
        (parts.of_weighted_logits(), [10 / 12, 2 / 12]),
    ):
        expected = np.exp(weights @ logits)
        assert found == pytest.approx(expected / expected.sum())


def test_the_table() -> None:
    """A column in which all rules are right, and one in which only the first part is wrong."""
    right, wrong = (Parts(np.array([row]), np.array([9])) for row in ([0.9, 0.1], [0.2, 0.8]))
    columns = {"a": [Diary(0, right, right, right)] * 3, "b": [Diary(0, wrong, right, right)]}
    head, _, *lines = table(columns, seed=0)
    assert head.startswith("| rule | a | b | all | difference (95% interval) | loss |")
    assert len(lines) == len(RULES) + 1
    assert lines[0].split(" | ")[1:4] == ["1.000", "1.000", "1.000"]
    assert lines[-2].split(" | ")[1:4] == ["1.000", "0.000", "0.750"]
    assert lines[-2].split(" | ")[4].startswith("-25.0 (")
