"""A training that was killed, through DVC: it goes on and ends with the same bytes."""

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from storyflower.tracking import mlflow
from storyflower.train import run as run_module
from tests.faults import crashes
from tests.support import TINY_PARAMS, command, environment_of, params_of, set_params

STAGE = [sys.executable, "-m", "stages.train"]
GOING_ON = "going on from the checkpoint after "


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    return crashes.prepare(tmp_path_factory.mktemp("crashes"))


@pytest.fixture
def root(prepared: tuple[Path, dict[str, bytes]], tmp_path: Path) -> Path:
    """A repository where train comes next."""
    return shutil.copytree(prepared[0], tmp_path / "root")


@pytest.mark.slow
def test_five_kills_and_the_same_bytes(
    prepared: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    kills = [
        (crashes.CHECKPOINT, crashes.BOTH),
        (crashes.RANDOM, crashes.STAGE),
        (crashes.RANDOM, crashes.DVC),
        (crashes.MODEL, crashes.BOTH),
        (crashes.AFTER, crashes.DVC),
    ]
    for attempt in range(3):  # a busy machine may not see the short write of the model in time
        root = shutil.copytree(prepared[0], tmp_path / str(attempt))
        lines = crashes.chain(root, crashes.REPRO, kills, random.Random(0))
        crashes.expect_equal(root, crashes.REPRO, prepared[1])
        if len(lines) == len(kills):
            break
    assert len(lines) == len(kills), lines
    crashes.expect_one_run(root)
    assert len(list(root.glob(".storyflower/checkpoints/*/*"))) == 2  # of the end, until evaluate
    command(root, "dvc", "repro")
    assert list(root.glob(".storyflower/checkpoints/*")) == []
    crashes.expect_one_run(root)


def killed(root: Path, condition: Callable[[Path], object]) -> None:
    """Run the train stage and kill it when the condition holds."""
    stage = subprocess.Popen(STAGE, cwd=root, env=environment_of(), stdout=subprocess.DEVNULL)
    while not condition(root):
        assert stage.poll() is None
    stage.kill()
    stage.wait()


@pytest.mark.slow
def test_a_fresh_clone_goes_on(
    root: Path, prepared: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    shared = tmp_path / "Drive" / "내 체크포인트"
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    params |= {"checkpoint_dir": f"'{shared}'"}
    set_params(root, **params)
    clone = shutil.copytree(root, tmp_path / "clone")
    killed(root, lambda _: len(list(shared.glob("*/*.safetensors"))) == 2)
    shutil.rmtree(root)  # the machine is gone, and its outbox with it
    # What no result depends on may change.
    set_params(clone, **{**params, "log_interval": 3, "checkpoint_minutes": 5})
    assert GOING_ON in command(clone, *STAGE)
    assert crashes.outputs(clone) == prepared[1]
    crashes.expect_one_run(clone)


def test_only_the_very_same_training_goes_on(
    interim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Whatever changes, an earlier training of this process is not gone on with."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(mlflow, "push", lambda *_: None)
    inputs = {name: tmp_path / name for name in ("encoder", "tokens", "labels.json")}
    for name, path in inputs.items():
        (shutil.copytree if (interim / name).is_dir() else shutil.copyfile)(interim / name, path)

    def goes_on(**values: object) -> bool:
        run_module.train(
            params_of(**{**TINY_PARAMS, "device": "cpu", "precision": "fp32", **values}),
            encoder=inputs["encoder"],
            dialogues=interim / "dialogues.parquet",
            labels=inputs["labels.json"],
            tokens=inputs["tokens"],
            classifier=tmp_path / "classifier",
            history=tmp_path / "history.csv",
            record=tmp_path / "run.json",
            lock=tmp_path / "train.lock",
        )
        return GOING_ON in capsys.readouterr().out

    def changed(path: Path) -> bool:
        """Whether it goes on with other bytes in a file that the training reads."""
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        result = goes_on()
        path.write_bytes(before)
        return result

    assert not goes_on()
    assert goes_on()
    assert goes_on(log_interval=5, checkpoint_minutes=1)
    for key, value in {"seed": 1, "num_epochs": 2, "dr_rate": 0.2, "precision": "bf16"}.items():
        assert not goes_on(**{key: value}), key
    for path in ("encoder/config.json", "tokens/Training.labels.npy", "labels.json"):
        assert not changed(tmp_path / path), path
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "loaded_code", lambda: {"storyflower.model": "another"})
        assert not goes_on()
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "version", lambda name: "another")
        assert not goes_on()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 7)
        assert not goes_on()
    assert goes_on()
