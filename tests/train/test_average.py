"""The mean of the last epochs' weights is what a training leaves, also after a death."""

from pathlib import Path

import numpy as np
import pytest
import torch

from storyflower.common.errors import InputError
from storyflower.interim.tokens import TokenArrays
from storyflower.model import scoring
from storyflower.model.device import choose
from storyflower.model.folder import load_classifier
from storyflower.tracking import mlflow
from storyflower.train import run as run_module
from storyflower.train.checkpoint import Checkpoints
from storyflower.train.state import State
from tests.support import TINY_PARAMS, params_of
from tests.train.test_checkpoint import MINE, die, fit, new_network, same, without_seconds


def epochs_weights(**values: object) -> tuple[torch.nn.Module, list, list[dict]]:
    """A trained network, its history, and its weights after each of its epochs."""
    weights: list[dict] = []

    class Watch:
        def restore(self, state: State) -> None: ...
        def after_step(self, state: State) -> None: ...
        def after_epoch(self, state: State) -> None:
            weights.append({name: v.clone() for name, v in state.model.state_dict().items()})

    network = new_network()
    return network, fit(network, Watch(), **values), weights


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_mean_of_the_last_epochs(count: int) -> None:
    _, plain, weights = epochs_weights()
    network, history, again = epochs_weights(average_last=count)
    assert without_seconds(history) == without_seconds(plain)  # of each epoch's own weights
    for name, value in network.state_dict().items():
        assert all(
            torch.equal(one[name], two[name]) for one, two in zip(weights, again, strict=True)
        )
        mean = torch.stack([epoch[name] for epoch in weights[3 - count :]]).mean(dim=0)
        torch.testing.assert_close(value, mean, atol=1e-6, rtol=0)
    assert not torch.equal(*(epoch["linear.weight"] for epoch in weights[-2:]))


@pytest.mark.parametrize("steps", [4, 5, 7, 10, 15])  # before the mean's first epoch, in and after
def test_a_resumed_training_has_the_same_mean(tmp_path: Path, steps: int) -> None:
    whole, resumed, third = new_network(), new_network(), new_network()
    history = fit(whole, average_last=2)
    die(tmp_path, steps, average_last=2)
    for network in (resumed, third):  # and once more, when all is done
        with Checkpoints(tmp_path, MINE, 5) as checkpoints:
            again = fit(network, checkpoints, average_last=2)
        assert without_seconds(again) == without_seconds(history)
        assert same(whole, network)


@pytest.mark.parametrize(
    ("values", "remedy"),
    [({"keep": "best"}, "keep: last"), ({"patience": 2}, "patience: 0")],
)
def test_no_choice_of_an_epoch_beside_it(values: dict, remedy: str) -> None:
    (key, value), *_ = values.items()
    choice = f"{key}: {value}" if key == "keep" else key
    line = f"average_last 2 and {choice} exclude each other; set average_last: 1 or {remedy}"
    with pytest.raises(InputError, match=f"^params: {line}$"):
        params_of(average_last=2, dev_share=0.1, **values)
    params_of(average_last=1, dev_share=0.1, **values)


def test_the_train_stage_saves_the_mean_and_says_so(
    interim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(mlflow, "push", lambda *_: None)
    validation = TokenArrays.load(interim / "tokens", "Validation")

    def train(**values: object) -> np.ndarray:
        """The logits of the classifier that a training leaves."""
        computed = {"device": "cpu", "precision": "fp32", "learning_rate": 3e-3, "mask_rate": 0.0}
        run_module.train(
            params_of(**{**TINY_PARAMS, **computed, "num_epochs": 3, **values}),
            encoder=interim / "encoder",
            dialogues=interim / "dialogues.parquet",
            labels=interim / "labels.json",
            tokens=interim / "tokens",
            classifier=tmp_path / "classifier",
            history=tmp_path / "history.csv",
            record=tmp_path / "run.json",
            lock=tmp_path / "train.lock",
        )
        network, _ = load_classifier(tmp_path / "classifier")
        return scoring.logits(network, validation, choose("cpu", "fp32"))

    last = train()
    assert "average_last" not in capsys.readouterr().out
    mean = train(average_last=2)
    (line,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("average_last")]
    assert line == (
        "average_last: the weights are the mean of those after epochs 2 to 3; evaluate prints "
        "their accuracy on Validation"
    )
    assert np.abs(mean - last).max() > 1e-3
    with pytest.raises(InputError, match="average_last 4 is above num_epochs, which is 3"):
        train(average_last=4)
