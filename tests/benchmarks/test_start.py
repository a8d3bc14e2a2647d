"""The time to the first step, in a repository whose training is finished."""

from pathlib import Path

import pytest

from benchmarks import start
from storyflower.common.errors import InputError
from tests.support import ROOT, TINY_PARAMS, command, set_params


@pytest.fixture
def repository(interim: Path, tmp_path: Path) -> Path:
    """What `dvc repro tokenize` leaves."""
    set_params(tmp_path, **TINY_PARAMS)
    for name in start.INPUTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(interim / Path(name).name)
    return tmp_path


@pytest.mark.slow
def test_a_finished_training_is_left_as_it_is(repository: Path, monkeypatch, capsys) -> None:
    """Its checkpoint is there: a stage that found it would go on after the last step."""
    command(repository, "python", "-m", "stages.train", PYTHONPATH=str(ROOT))
    assert list(repository.glob(".storyflower/checkpoints/*/*.safetensors"))
    before = files_of(repository)
    monkeypatch.chdir(repository)
    monkeypatch.setattr(start, "TIMES", 1)
    start.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert float(line.removesuffix(" s")) > 0
    assert files_of(repository) == before


def files_of(folder: Path) -> dict[Path, int]:
    """When each file was last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_stage_that_ends_without_a_step_says_why(repository: Path, monkeypatch) -> None:
    tokens = repository / "data/interim/tokens"
    tokens.unlink()
    tokens.mkdir()
    monkeypatch.chdir(repository)
    with pytest.raises(InputError, match=r"ended before its first step: data/interim/tokens"):
        start.main()
