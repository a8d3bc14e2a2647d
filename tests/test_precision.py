"""Predictions with the encoder's weights in bfloat16."""

from pathlib import Path

import pytest
import torch

from storyflower import Classifier
from storyflower.__main__ import main
from storyflower.common.errors import InputError
from tests.support import dialogue_rows


def test_bf16_gives_the_same_labels(classifier: Path) -> None:
    texts = [f"{row[7]} {row[9]}" for row in dialogue_rows(60, seed=5)]
    exact = Classifier.load(classifier, "cpu").predict(texts)
    rounded = Classifier.load(classifier, "cpu", precision="bf16").predict(texts)
    assert [row.label for row in rounded] == [row.label for row in exact]
    assert rounded != exact  # so it is not float32 under another name
    for one, other in zip(exact, rounded, strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=0.05)


def test_bf16_keeps_the_weights_and_not_the_linear_layer(classifier: Path) -> None:
    network = Classifier.load(classifier, "cpu", precision="bf16")._network
    assert {value.dtype for value in network.encoder.state_dict().values() if len(value)} == {
        torch.bfloat16
    }
    assert network.linear.weight.dtype == torch.float32


def test_the_command_takes_a_precision(
    classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["predict", "--model", str(classifier), "--precision", "bf16", "합격했어"])
    assert capsys.readouterr().out.split("\t")[:2] == ["1", "기쁨"]


def test_a_wrong_precision_is_one_line(classifier: Path) -> None:
    for wrong in ("fp8", "float32", "", "auto"):
        with pytest.raises(InputError, match="^precision must be fp32 or bf16, got ") as caught:
            Classifier.load(classifier, precision=wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="^precision must be fp32 or bf16, got 'fp8'$"):
        main(["predict", "--model", str(classifier), "--precision", "fp8", "합격했어"])
