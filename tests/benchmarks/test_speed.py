"""The benchmark runs at toy size, and its loops do the same job. Nothing here is about time."""

import json
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from storyflower.model.device import choose
from tests.benchmarks.support import call
from tests.support import ROOT

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LOOPS = ("ours", "trainer", "trainer_best", "notebook")


def nothing() -> None:
    """The CPU has nothing to wait for."""


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    """Imported here: the Trainer's packages take seconds, and each worker collects this file."""
    return import_module("benchmarks.speed")


@pytest.mark.slow
def test_all_loops_compute_the_same_losses(speed: ModuleType, tmp_path: Path) -> None:
    """Three steps on the same batches, fp32, nothing dropped, the same rate in each step."""
    from transformers import BertConfig

    from benchmarks import peers

    config = BertConfig(
        vocab_size=50,
        pad_token_id=peers.PAD,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **SMALL,
    )
    place = choose("cpu", "fp32")
    # The rates of the loops differ (a schedule, a constant), so what they share is step one, on
    # the same weights, and that the loss is the mean over the batch.
    params = speed.params_of(num_epochs=1, batch_size=8, warmup_ratio=0, max_len=64)
    table = speed.random_table(24, 12, 24, seed=0)
    table = type(table)(table.ids % 45 + 5, table.offsets, table.labels)
    batches = list(np.arange(24).reshape(3, 8))
    loops = {
        "ours": peers.Ours(config, params, 0.0, place),
        "notebook": peers.Notebook(config, params, 0.0, place.device),
        "trainer": peers.HuggingFace(config, params, 0.0, place, str(tmp_path)),
    }
    found = {name: loop.run(table, batches, nothing) for name, loop in loops.items()}
    for name, steps in found.items():
        assert len(steps.losses) == len(steps.seconds) == len(steps.tokens) == 3, name
        assert steps.tokens == [int(table.lengths[rows].sum()) for rows in batches], name
        assert steps.losses[0] == pytest.approx(found["ours"].losses[0], abs=2e-4), name


@pytest.mark.slow
def test_the_benchmark_writes_its_table(
    speed: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    words = ["steps", "--toy", "--batch", "4", "--rounds", "1", "--minutes", "0", "--device", "cpu"]
    call(monkeypatch, speed, *words, "--output", str(tmp_path / "b.json"))
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert set(found["dialogues_a_second"]) == set(LOOPS)
    for name in LOOPS[1:]:
        rates = found["dialogues_a_second"]
        ratio = rates["ours"]["median"] / rates[name]["median"]
        assert found[f"ratio_vs_{name}"] == pytest.approx(ratio)
        assert f"| {name} |" in out
    assert found["share_of_gemm"] > 0
    assert found["rounds"] == found["steps_a_round"] == 1
    limit = found["ratio_vs_notebook_at_equal_efficiency"]
    if found["machine"]["placement"].endswith("fp32"):  # then only pads and the last layer count
        share = speed.work_share(speed.BertConfig(**speed.KOBERT, **speed.TOY))
        assert limit == pytest.approx(64 / found["mean_tokens"] / share)
    assert limit > 0
    assert {"by_batch", "by_mean_tokens"} == set(found["scaling"])
    assert found["machine"]["threads"] >= 1


def test_the_page_shows_the_loops_that_are_measured() -> None:
    page = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| loop \|.*\n\|[ -|]*\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert tables
    for table in tables:
        assert tuple(row.split("|")[1].strip() for row in table.splitlines()) == LOOPS


@pytest.mark.slow
def test_a_whole_training_says_where_its_time_went(
    speed: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = ["epochs", "--toy", "--epochs", "2", "--dialogues", "40", "--batch", "8"]
    call(monkeypatch, speed, *words, "--device", "cpu")
    out = capsys.readouterr().out
    found = json.loads(out[out.index("{") :])
    parts = ("first_epoch_extra_seconds", "steps_seconds", "evaluation_seconds")
    assert found["wall_seconds"] >= found["steps_seconds"] > 0
    assert all(name in found for name in parts)
    assert found["share_of_gemm"] > 0
    assert found["epochs"] == 2
    assert found["dialogues"] == 40


@pytest.mark.slow
def test_the_work_of_a_token(speed: ModuleType) -> None:
    """KoBERT's layers hold 85 million weights, and a step takes six operations for each."""
    kobert = speed.BertConfig(**speed.KOBERT)
    work = speed.work_per_token(kobert)
    assert work == 6 * 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert work == pytest.approx(6 * 85e6, rel=0.01)
    assert speed.work_share(kobert) == pytest.approx(1 - 9 / 12 / 12)


@pytest.mark.slow
def test_rounds_end_in_time(speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of 100 s: three are the least, and five end within 540 s."""
    now = [0.0]
    monkeypatch.setattr(speed.time, "monotonic", lambda: now[0])
    for seconds, count in ((0, 3), (540, 5), (600, 6)):
        now[0], done = 0.0, 0
        for _ in speed.rounds(3, seconds):
            now[0] += 100
            done += 1
        assert done == count


@pytest.mark.slow
def test_the_input_benchmark_adds_to_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "b.json"
    output.write_text('{"batch": 64}', encoding="utf-8")
    call(monkeypatch, import_module("benchmarks.input"), "--rows", "600", "--output", str(output))
    out = capsys.readouterr().out
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["batch"] == 64
    assert found["input"]["rows"] == 675
    assert found["input"]["ratio_ingest_vs_pandas"]["median"] > 0
    assert found["input"]["tokenizer_sentences_a_second"] > 0
    assert ("beside gluonnlp" in out) == (ROOT / ".venv-original/bin/python").exists()
