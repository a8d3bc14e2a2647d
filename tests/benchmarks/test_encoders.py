"""The table of the cards fits the cards and their shapes, and the benchmark runs at toy size."""

import re

import numpy as np
import pytest

from benchmarks import encoders
from storyflower.encoder.card import Card
from storyflower.interim.tokens import TokenArrays
from tests.support import ROOT

CARDS = {file.stem: Card.load(file) for file in (ROOT / "encoders").glob("*.yaml")}


def table() -> dict[str, list[str]]:
    """Card → the other cells of its row in docs/encoders.md."""
    page = (ROOT / "docs/encoders.md").read_text(encoding="utf-8")
    (rows,) = re.findall(r"^\| card \| family \|.*\n\|[ -|]*\n((?:\|.*\n)+)", page, re.MULTILINE)
    cells = [[cell.strip() for cell in row.strip("|\n").split("|")] for row in rows.splitlines()]
    return {name: rest for names, *rest in cells for name in re.findall("`([^`]+)`", names)}


def test_every_card_has_a_shape_and_a_row() -> None:
    assert set(encoders.SHAPES) == set(CARDS) == set(table())


def test_rows_say_what_the_shape_and_the_card_say() -> None:
    for name, (family, _, licence, _, forward_pass, _) in table().items():
        shape = encoders.SHAPES[name]
        assert (family, forward_pass) == (shape.family, shape.forward_pass), name
        assert licence == CARDS[name].license, name


@pytest.mark.parametrize("size", [200, 65_536, 256_000])
def test_ids_of_vocabularies_of_any_size(size: int) -> None:
    ids = np.arange(8_000, dtype=np.uint16)
    made = encoders.with_vocabulary(TokenArrays(ids, np.array([0, 8_000]), np.zeros(1)), size)
    assert made.ids.min() >= encoders.SPECIAL and made.ids.max() < size


@pytest.mark.slow  # 21 encoders without weights, but module by module
def test_rows_say_how_many_parameters_the_shape_has() -> None:
    for name, (_, parameters, *_) in table().items():
        assert parameters == f"{encoders.SHAPES[name].parameters / 1e6:.0f} M", name


@pytest.mark.slow
def test_it_runs_at_toy_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of each family and pass; the rows are those of docs/encoders.md."""
    names = ["distilkobert", "koelectra-small", "klue-roberta", "ax-encoder", "kf-deberta", "kure"]
    monkeypatch.chdir(ROOT)
    words = ["--toy", "--batch-size", "3", "--rounds", "2", "--device", "cpu", "--only", *names]
    monkeypatch.setattr("sys.argv", ["encoders", *words])
    encoders.main()
    rows = [row.strip("|").split("|") for row in capsys.readouterr().out.splitlines() if "`" in row]
    assert [row[0].strip(" `") for row in rows] == names
    for name, row in zip(names, rows, strict=True):
        family, _, forward_pass, step, ratio = (cell.strip() for cell in row[1:])
        assert [family, forward_pass] == [table()[name][0], table()[name][4]]
        assert int(step.removesuffix(" ms")) >= 1
        median, least, most = map(float, re.findall(r"[\d.]+", ratio))
        assert 0 < least <= median <= most
