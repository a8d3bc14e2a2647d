"""The table of options: each beside the params as they are, on the same rows and seeds."""

import argparse
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import default
from storyflower.common.errors import InputError
from tests.support import WORDS, params_of


def texts(count: int) -> default.Texts:
    labels = np.arange(count) % 3
    words = list(WORDS.values())
    return default.Texts([words[label][i % 4] for i, label in enumerate(labels)], labels)


def test_each_change_has_a_row_beside_the_params_as_they_are(interim: Path, capsys) -> None:
    values = {"num_epochs": 1, "batch_size": 8, "max_len": 16, "learning_rate": 3e-3}
    params = params_of(**values, optimizer="adamw", mask_rate=0.0, dr_rate=0.1, precision="fp32")
    options = argparse.Namespace(seeds=2, each=["seed=42", "num_epochs=4,label_smoothing=0.1"])
    default.compare_each(texts(24), texts(30), params, interim / "encoder", options)
    rows = [re.split(r" *\| *", line)[1:-1] for line in capsys.readouterr().out.splitlines()]
    plain, same, other = rows
    assert plain[:2] == ["24", "as they are"] and plain[4] == ""
    assert same == ["24", "seed=42", *plain[2:4], "+0.0 (+0.0 to +0.0)"]
    assert other[:2] == ["24", "num_epochs=4,label_smoothing=0.1"]
    means = [float(row[2].split()[0]) for row in (plain, other)]
    gain, low, high = map(float, re.findall(r"[+-][\d.]+", other[4]))
    assert gain == pytest.approx(100 * (means[1] - means[0]), abs=0.11)
    assert low < gain < high


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("label_smoothing", "'label_smoothing' is not KEY=VALUE"),
        ("label_smoothing=0.1,dr=3", "--each: unknown key 'dr'"),
        ("label_smoothing=1", r"--each: label_smoothing must be a number in \[0, 1\), got 1"),
    ],
)
def test_a_change_that_is_none(change: str, line: str) -> None:
    with pytest.raises(InputError, match=line):
        default.each(params_of(), [change])
