"""The benchmark of predictions runs at toy size, and its loops do the same job."""

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from storyflower import Classifier
from tests.benchmarks.support import call
from tests.support import dialogue_rows

TEXTS = [f"{row[7]} {row[9]}" for row in dialogue_rows(24, seed=6)] + ["", "합격 " * 100]


@pytest.fixture(scope="module")
def inference() -> ModuleType:
    """Imported here: its packages take seconds, and each worker collects this file."""
    return import_module("benchmarks.inference")


@pytest.mark.slow
def test_the_pipeline_gives_our_probabilities(inference: ModuleType, tmp_path: Path) -> None:
    ours, theirs = inference.write_models(tmp_path, TEXTS, 64, toy=True)
    expected = [row.probabilities for row in Classifier.load(ours, "cpu").predict(TEXTS)]
    for precision, within in (("fp32", 1e-5), ("bf16", 0.02)):
        loop = inference.peer(theirs, precision, 64)
        for batch in (1, 8):
            found = [{each["label"]: each["score"] for each in row} for row in loop(TEXTS, batch)]
            assert found == [pytest.approx(row, abs=within) for row in expected]
    assert np.std([row["기쁨"] for row in expected]) > 1e-3  # not the same answer to everything


@pytest.mark.slow
def test_the_benchmark_adds_to_the_same_file(
    inference: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    output = tmp_path / "b.json"
    output.write_text('{"batch": 64}', encoding="utf-8")
    words = ["--toy", "--texts", "12", "--rounds", "1", "--times", "3", "--threads", "1"]
    call(monkeypatch, inference, *words, "--output", str(output))
    out = capsys.readouterr().out
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["batch"] == 64
    figures = found["inference"]
    for name, ms in figures["latency_ms"].items():
        assert 0 < ms["p50"] <= ms["p99"]
        assert f"| {name} | {ms['p50']:.1f} |" in out
    rates = figures["bulk"]["texts_a_second"]
    assert {"ours fp32", "ours bf16", "pipeline fp32", "pipeline bf16"} <= set(rates)
    ratio = rates["ours fp32"]["median"] / rates["pipeline fp32"]["median"]
    assert figures["bulk"]["ratio_fp32"]["median"] == pytest.approx(ratio)
    assert figures["cold_load_seconds"]["this shape"]["median"] > 0
    assert ("no rows of onnxruntime" in out) == ("onnxruntime int8" not in rates)
