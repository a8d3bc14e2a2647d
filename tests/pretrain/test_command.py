"""python -m pretrain: what its options make of a recipe, and what ends in one line."""

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from pretrain import __main__ as command
from pretrain.recipe import Recipe
from pretrain.train import pretrain
from storyflower.common.errors import InputError
from tests.pretrain.support import RECIPE, some_texts


@pytest.fixture
def call(tmp_path: Path, monkeypatch):
    """Runs the command in a folder with a.txt; returns what it would pretrain with."""
    (tmp_path / "a.txt").write_text("하나\n둘\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    got: dict[str, Any] = {}
    monkeypatch.setattr(
        command, "pretrain", lambda _, recipe, output, **more: got.update(recipe=recipe, **more)
    )

    def called(*words: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["pretrain", "a.txt", "--output", "mine", *words])
        command.main()
        return got

    return called


def test_the_options_are_the_recipe(call) -> None:
    got = call("--steps", "501", "--batch-tokens", "9", "--rate", "0.5", "--precision", "bf16")
    assert got["recipe"] == Recipe(steps=501, batch_tokens=9, rate=0.5, precision="bf16")
    assert got["start"] is None and got["checkpoint_minutes"] == 5


@pytest.mark.parametrize(
    ("words", "warmup"),
    [("--steps 500", 50), ("--steps 501", 500), ("--steps 9", 0), ("--steps 9 --warmup 8", 8)],
)
def test_a_warmup_that_nobody_asked_for_fits(call, words: str, warmup: int) -> None:
    assert call(*words.split())["recipe"].warmup == warmup


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--steps -1", "--steps -1: must be at least 0"),
        ("--pieces 5", "--pieces 5: must be 6 to 131072"),
        ("--pieces 131073", "--pieces 131073: must be 6 to 131072"),
        ("--layers 0", "--layers 0: must be at least 1"),
        ("--batch-tokens 0", "--batch-tokens 0: must be at least 1"),
        ("--max-len 2", "--max-len 2: must be 3 to 512"),
        ("--seed -1", "--seed -1: must be 0 to 4294967295"),
        ("--seed 4294967296", "--seed 4294967296: must be 0 to 4294967295"),
        ("--heads 3", "--heads 3: must divide --hidden 256"),
        ("--rate 0", "--rate 0: must be above 0, and 1 at most"),
        ("--rate nan", "--rate nan: must be above 0, and 1 at most"),
        ("--weight-decay -1", "--weight-decay -1: must be at least 0"),
        ("--weight-decay nan", "--weight-decay nan: must be at least 0"),
        ("--warmup -1", "--warmup -1: must be at least 0"),
        ("--steps 9 --warmup 9", "--warmup 9: must be less than --steps 9, or the peak"),
        ("--checkpoint-minutes 0", "--checkpoint-minutes 0: must be a number above 0"),
        ("--checkpoint-minutes inf", "--checkpoint-minutes inf: must be a number above 0"),
        ("--checkpoint-minutes nan", "--checkpoint-minutes nan: must be a number above 0"),
        ("--start none --layers 4", "--layers 4: --start brings its own; leave it out"),
        ("--start none --pieces 8000", "--pieces 8000: --start brings its own; leave it out"),
        ("--start none", "--start none: has no config.json; name a folder with"),
        ("--output none/mine", "--output none/mine: no folder none; make it first"),
    ],
)
def test_options_that_cannot_be_followed(call, words: str, expected: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(expected)}[^\n]*$"):
        call("--steps", "1000", *words.split())


def test_a_precision_that_no_one_knows(call, capsys) -> None:
    with pytest.raises(SystemExit):
        call("--steps", "1", "--precision", "fp8")
    assert "invalid choice: 'fp8'" in capsys.readouterr().err


def test_what_the_output_would_take_with_it(call, tmp_path: Path, monkeypatch) -> None:
    pretrain(some_texts(), Recipe(**{**vars(RECIPE), "steps": 0}), tmp_path / "mine")
    assert call("--steps", "1", "--start", "mine", "--output", "other")["start"] == Path("mine")
    for words in ("--start mine", "--checkpoint-dir mine/checkpoints"):
        expected = f"--output mine: is replaced, and {words} lies in it; name another folder"
        with pytest.raises(InputError, match=f"^{expected}$"):
            call("--steps", "1", *words.split())
    (tmp_path / "a.txt").rename(tmp_path / "mine/a.txt")
    (tmp_path / "a.txt").symlink_to(tmp_path / "mine/a.txt")
    with pytest.raises(InputError, match="and the text file a.txt lies in it"):
        call("--steps", "1")


def test_the_output_is_refused_before_a_text_is_read(call, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")  # would be refused for its content
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/diary.txt").touch()
    with pytest.raises(InputError, match="^--output mine: holds something else"):
        call("--steps", "1")


def test_each_option_says_what_it_means(call, capsys) -> None:
    with pytest.raises(SystemExit):
        call("--help")
    out = " ".join(capsys.readouterr().out.split())
    for line in ("peak learning rate (default: 0.0015)", "size of the vocabulary, at most"):
        assert line in out


def test_it_ends_in_one_line(tmp_path: Path, monkeypatch, capfd) -> None:
    """As `python -m pretrain` does, whose imports would take seconds of a process's own."""
    (tmp_path / "a.txt").write_bytes("하나".encode("cp949") + b"\n\xff")
    words = [str(tmp_path / "a.txt"), "--steps", "1", "--output", str(tmp_path / "mine")]
    monkeypatch.setattr(sys, "argv", ["pretrain", *words])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(command.__file__, run_name="__main__")
    said = capfd.readouterr().err
    assert stop.value.code == 1
    assert said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "mine").exists()
