"""A training that was killed, through DVC: it goes on and ends with the same bytes."""

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, command, environment_of, set_params

sys.path.append(str(ROOT / "benchmarks"))

import crashes

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
def test_five_kills_and_the_same_bytes(root: Path, prepared: tuple[Path, dict[str, bytes]]) -> None:
    kills = [
        (crashes.CHECKPOINT, crashes.BOTH),
        (crashes.RANDOM, crashes.STAGE),
        (crashes.RANDOM, crashes.DVC),
        (crashes.MODEL, crashes.BOTH),
        (crashes.AFTER, crashes.DVC),
    ]
    lines = crashes.chain(root, crashes.REPRO, kills, random.Random(0))
    assert len(lines) == len(kills), lines
    crashes.expect_equal(root, crashes.REPRO, prepared[1])
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
def test_a_fresh_clone_goes_on_and_another_run_does_not(
    root: Path, prepared: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    shared = tmp_path / "Drive" / "내 체크포인트"
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    params |= {"checkpoint_dir": f"'{shared}'"}
    set_params(root, **params)
    clone = shutil.copytree(root, tmp_path / "clone")
    killed(root, lambda _: len(list(shared.glob("*/*.safetensors"))) == 2)
    shutil.rmtree(root)  # the machine is gone, and its outbox with it

    # Another learning rate is another run; another log_interval is not.
    other = shutil.copytree(clone, tmp_path / "other")
    set_params(other, **{**params, "learning_rate": 0.002, "num_epochs": 1})
    assert GOING_ON not in command(other, *STAGE)
    set_params(clone, **{**params, "log_interval": 3, "checkpoint_minutes": 5})
    assert GOING_ON in command(clone, *STAGE)
    assert crashes.outputs(clone) == prepared[1]
    crashes.expect_one_run(clone)
