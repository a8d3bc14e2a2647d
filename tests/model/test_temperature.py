"""The temperature against a plain search, and what it changes."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from storyflower import Classifier
from storyflower.common.errors import InputError
from storyflower.interim.tokens import TokenArrays
from storyflower.model import scoring
from storyflower.model.device import choose
from storyflower.model.folder import load_classifier
from storyflower.model.temperature import LEAST, MOST, fit_temperature


def cross_entropy(logits: np.ndarray, actual: np.ndarray, temperature: float) -> float:
    chosen = log_softmax(logits.astype(float) / temperature, axis=1)[range(len(actual)), actual]
    return float(-chosen.mean())


def drawn(seed: int, scale: float, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes drawn from softmax(logits / scale): the best temperature is near it."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(rows, 6)) * 3).astype(np.float32)
    chances = np.exp(log_softmax(logits / scale, axis=1))
    return logits, np.array([rng.choice(6, p=chance / chance.sum()) for chance in chances])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 4.0])
def test_least_cross_entropy(seed: int, scale: float) -> None:
    logits, actual = drawn(seed, scale)
    found = fit_temperature(logits, actual)
    expected = minimize_scalar(
        lambda t: cross_entropy(logits, actual, t), bounds=(LEAST, MOST), method="bounded"
    ).x
    assert found == pytest.approx(expected, rel=1e-3)
    assert found == pytest.approx(scale, rel=0.25)
    assert found == fit_temperature(logits, actual) == round(found, 4)


@pytest.mark.parametrize(("right", "expected"), [(True, LEAST), (False, MOST)])
def test_dev_parts_that_say_nothing_of_the_size(right: bool, expected: float) -> None:
    """Without an error, any smaller temperature is better; without a hit, any larger one."""
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    actual = np.array([0, 1, 2, 0]) if right else np.array([1, 2, 0, 1])
    assert fit_temperature(logits, actual) == expected
    # exp would overflow. All rows right and certain at any temperature: the largest of the equals.
    assert fit_temperature(logits * 1000, actual) == MOST


def test_probabilities_are_softmax_of_logits_over_temperature(
    classifier: Path, interim: Path
) -> None:
    network, _ = load_classifier(classifier)
    table = TokenArrays.load(interim / "tokens", "Validation")
    placement = choose("cpu", "fp32")
    logits = torch.from_numpy(scoring.logits(network, table, placement))
    plain = scoring.probabilities(network, table, placement)
    assert np.array_equal(plain, torch.softmax(logits, dim=-1).numpy())
    warm = scoring.probabilities(network, table, placement, temperature=2.5)
    assert warm == pytest.approx(torch.softmax(logits / 2.5, dim=-1).numpy(), abs=1e-6)
    assert (warm.argmax(axis=1) == plain.argmax(axis=1)).all()
    assert (warm.max(axis=1) < plain.max(axis=1)).all()


def with_temperature(classifier: Path, folder: Path, value: object) -> Path:
    """A copy of a classifier's folder with this temperature; "absent": without the key."""
    shutil.copytree(classifier, folder)
    document = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    document.pop("temperature", None)
    if value != "absent":
        document["temperature"] = value
    (folder / "classifier.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_the_folder_holds_it(classifier: Path, tmp_path: Path) -> None:
    texts = ["합격했어", "잠이 안 와 따지고 싶어"]
    plain = Classifier.load(classifier, device="cpu")
    assert plain.temperature is None
    for name, value in {"none": None, "absent": "absent"}.items():
        other = Classifier.load(with_temperature(classifier, tmp_path / name, value), device="cpu")
        assert (other.temperature, other.predict(texts)) == (None, plain.predict(texts))
    warm = Classifier.load(with_temperature(classifier, tmp_path / "warm", 2.0), device="cpu")
    assert warm.temperature == 2.0
    for before, after in zip(plain.predict(texts), warm.predict(texts), strict=True):
        roots = {name: math.sqrt(p) for name, p in before.probabilities.items()}
        expected = {name: root / sum(roots.values()) for name, root in roots.items()}
        assert after.probabilities == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("value", [0, -1.0, "warm", [1.0], float("nan"), float("inf")])
def test_a_temperature_that_is_none(classifier: Path, tmp_path: Path, value: object) -> None:
    folder = with_temperature(classifier, tmp_path / "classifier", value)
    with pytest.raises(InputError, match="classifier.json: damaged"):
        load_classifier(folder)
