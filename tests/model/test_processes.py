"""Several processes train as one does: the same batches, the same mean, one writer."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storyflower.common.errors import InputError
from storyflower.model import device
from storyflower.model import processes as processes_module
from storyflower.model.processes import Ranks
from tests.support import ROOT, before_training, mlflow_runs, run

# What torchrun starts: fit() on a random table, with a model that drops nothing.
TRAIN = """
import copy, json, os, sys
import torch
from tests.train.test_fit import FAMILIES, random_table
from tests.support import params_of
from transformers import AutoModel
from storyflower.model import classifier
from storyflower.train import fit as fit_module
from storyflower.model.device import choose
from storyflower.common.errors import exit_with_line
from storyflower.model.processes import joined

def main():
    place = choose("cpu", "fp32")
    with joined(place.device) as ranks:
        torch.manual_seed(0)
        config = copy.deepcopy(FAMILIES["bert"])
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0
        network = classifier.EmotionClassifier(AutoModel.from_config(config), 3, dr_rate=0.0)
        # Batches of 8, 8, 8 and 1: one process has nothing to do; of the others it may have 3 or 5.
        table = random_table(25, longest=60)

        def note(rows):
            if os.environ.get("DIE") == str(ranks.rank):
                os._exit(7)

        state = fit_module.fit(
            network, train=table, test=table, placement=place, on_epoch=note, ranks=ranks,
            params=params_of(num_epochs=3, batch_size=8, warmup_ratio=0.2, learning_rate=1e-2,
                             optimizer="adamw", mask_rate=0.0, class_weights="balanced",
                             micro_batch=int(os.environ.get("MICRO", 8))),
        )
        weights = torch.cat([p.detach().flatten() for p in network.parameters()])
        found = {"rows": [[r.loss, r.train_accuracy, r.test_loss] for r in state.history],
                 "weights": weights.tolist()}
        with open(f"{sys.argv[1]}.{ranks.rank}", "w") as file:
            json.dump(found, file)

exit_with_line(main)
"""


def torchrun(path: Path, processes: int, **environment: str) -> subprocess.CompletedProcess[str]:
    script = path.with_suffix(".py")
    script.write_text(TRAIN, encoding="utf-8")
    # A process that lost another has two seconds to say so before torchrun ends it.
    how = ["--standalone", f"--nproc-per-node={processes}", "--monitor-interval=2"]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *how, str(script), str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The one is the process of the test itself.

    All compute their shares in parts, and of the two sometimes one in more than the other.
    """
    done = torchrun(tmp_path / "of", 2, MICRO="3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 3/3") == 1  # one process talks
    first, second = (
        json.loads((tmp_path / f"of.{rank}").read_text(encoding="utf-8")) for rank in range(2)
    )
    monkeypatch.setattr(sys, "argv", ["train", str(tmp_path / "alone")])
    monkeypatch.setenv("MICRO", "8")
    for name in ("WORLD_SIZE", "DIE"):
        monkeypatch.delenv(name, raising=False)
    runpy.run_path(str(tmp_path / "of.py"))
    one = json.loads((tmp_path / "alone.0").read_text(encoding="utf-8"))
    assert capsys.readouterr().out.count("epoch 3/3") == 1
    assert first == second  # all processes have the same model and the same figures
    np.testing.assert_allclose(first["rows"], one["rows"], rtol=1e-4)
    np.testing.assert_allclose(first["weights"], one["weights"], atol=1e-4)
    assert first["weights"] != one["weights"]  # another order of sums: the two really shared work


@pytest.mark.slow
def test_a_dead_process_ends_the_run_with_a_line(tmp_path: Path) -> None:
    done = torchrun(tmp_path / "dies", 2, DIE="1")
    assert done.returncode != 0
    assert "error: process 1 of 2 lost the others" in done.stderr
    assert "Warning" not in done.stderr.split("error:")[0]
    assert not list(tmp_path.glob("dies.[01]"))


@pytest.mark.slow
def test_the_train_stage_under_torchrun(
    interim: Path, make_repository: Callable[..., Path]
) -> None:
    """Through dvc: one MLflow run, one model, and evaluate reads it."""
    root = make_repository(
        num_epochs=2, launcher='"torchrun --standalone --nproc-per-node=2"', precision="fp32"
    )
    before_training(interim, root)
    done = run(root, "dvc", "repro", "--single-item", "train", "evaluate")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1
    (found,) = mlflow_runs(root)
    assert found.data.tags["processes"] == "2"
    assert found.info.status == "FINISHED"
    assert found.data.metrics["train_accuracy"] > 0


@given(
    lengths=st.lists(st.integers(3, 64), min_size=1, max_size=70),
    count=st.integers(1, 9),
)
def test_every_dialogue_has_one_process_and_the_loads_are_even(
    lengths: list[int], count: int
) -> None:
    rows = np.random.default_rng(0).permutation(1000)[: len(lengths)]
    tokens = np.array(lengths)
    shares = [Ranks(rank, count).share(rows, tokens) for rank in range(count)]
    assert sorted(np.concatenate(shares)) == sorted(rows)
    of = dict(zip(rows.tolist(), lengths, strict=True))
    loads = [sum(of[row] for row in share.tolist()) for share in shares]
    assert max(loads) - min(loads) <= max(lengths)  # no move of one dialogue would help


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    said = {"cuda": "which has 1 GPUs; lower --nproc-per-node", "mps": "an Apple GPU trains in one"}
    for kind, line in said.items():
        with pytest.raises(InputError, match=line), processes_module.joined(torch.device(kind)):
            pass


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes_module.joined(device.choose("cpu", "fp32").device) as found:
        assert found == Ranks(0, 1)
        assert found.first
