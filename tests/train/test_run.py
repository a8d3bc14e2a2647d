"""The train stage's classifier: what else it holds than weights."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from storyflower.common import locks
from storyflower.common.errors import InputError
from storyflower.interim.labels import LabelIndex
from storyflower.interim.tokens import TokenArrays
from storyflower.model import scoring
from storyflower.model.device import choose
from storyflower.model.folder import load_classifier
from storyflower.model.processes import ALONE, Ranks
from storyflower.model.temperature import LEAST, MOST, fit_temperature
from storyflower.tracking import mlflow
from storyflower.tracking.record import Record
from storyflower.train import run as run_module
from storyflower.train.dev import held_back, take
from tests.support import TINY_PARAMS, params_of


def test_the_temperature_is_that_of_the_dev_part_and_the_kept_weights(
    interim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(mlflow, "push", lambda *_: None)
    labels = interim / "labels.json"
    tokens = shutil.copytree(interim / "tokens", tmp_path / "tokens")
    numbers = np.load(tokens / "Training.labels.npy")
    numbers[::4] = (numbers[::4] + 1) % 3  # else the dev part has no error, and any would do
    np.save(tokens / "Training.labels.npy", numbers)
    table, names = pq.read_table(interim / "dialogues.parquet"), LabelIndex.load(labels).names
    changed = [names[number] for number in numbers] + table["label"].to_pylist()[len(numbers) :]
    table = table.set_column(table.column_names.index("label"), "label", pa.array(changed))
    pq.write_table(table, tmp_path / "dialogues.parquet")

    def train(**values: object) -> bytes:
        """classifier.json of a training with these params."""
        computed = {"device": "cpu", "precision": "fp32", "learning_rate": 3e-3, "mask_rate": 0.0}
        run_module.train(
            params_of(**{**TINY_PARAMS, **computed, **values}),
            encoder=interim / "encoder",
            dialogues=tmp_path / "dialogues.parquet",
            labels=labels,
            tokens=tokens,
            classifier=tmp_path / "classifier",
            history=tmp_path / "history.csv",
            record=tmp_path / "run.json",
            lock=tmp_path / "train.lock",
        )
        return (tmp_path / "classifier/classifier.json").read_bytes()

    assert json.loads(train())["temperature"] is None
    assert "temperature" not in capsys.readouterr().out

    values = {"dev_share": 0.3, "num_epochs": 8, "dr_rate": 0.1, "keep": "best"}
    written = train(**values)
    found = json.loads(written)["temperature"]
    network, _ = load_classifier(tmp_path / "classifier")
    training = TokenArrays.load(tokens, "Training")
    dev = take(training, held_back(training, 0.3, json.loads(written)["params"]["seed"]))
    logits = scoring.logits(network, dev, choose("cpu", "fp32"))
    assert LEAST < found == fit_temperature(logits, dev.labels) < MOST
    validation = TokenArrays.load(tokens, "Validation")
    logits = scoring.logits(network, validation, choose("cpu", "fp32"))
    assert found != fit_temperature(logits, np.asarray(validation.labels))
    assert f"temperature {found:g}, from {len(dev)} rows of the dev part" in capsys.readouterr().out
    results = {key: value for key, value, _ in Record.load(tmp_path / "run.json").results}
    assert results["temperature"] == found

    assert train(**values) == written  # goes on from the last checkpoint
    assert "going on from" in capsys.readouterr().out

    def full(*_: object) -> np.ndarray:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(scoring, "logits", full)
    with pytest.raises(InputError, match=r"^out of memory \(CUDA out of memory\); lower max_len"):
        train(**values)


@pytest.mark.parametrize(
    "change",
    [
        lambda names: names[::-1],
        lambda names: names[:-1],
        lambda names: [*names, "슬픔"],
        lambda names: [*names[:-1], "슬픔"],
    ],
    ids=["reordered", "removed", "added", "renamed"],
)
def test_labels_changed_by_hand_are_not_trained_on(
    interim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[list], list]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(mlflow, "push", lambda *_: None)
    labels = tmp_path / "labels.json"
    LabelIndex(change(list(LabelIndex.load(interim / "labels.json").names))).save(labels)
    outputs = {name: tmp_path / name for name in ("classifier", "history", "record", "lock")}
    with pytest.raises(InputError) as caught:
        run_module.train(
            params_of(**TINY_PARAMS, device="cpu", precision="fp32"),
            encoder=interim / "encoder",
            dialogues=(table := interim / "dialogues.parquet"),
            labels=labels,
            tokens=(tokens := interim / "tokens"),
            **outputs,
        )
    expected = f"{labels}, {table} and {tokens} are of different runs; run 'dvc repro'"
    assert str(caught.value) == expected
    assert not outputs["classifier"].exists()


def test_tokens_of_another_vocabulary_are_not_trained_on(
    interim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(mlflow, "push", lambda *_: None)
    encoder, tokens = tmp_path / "encoder", interim / "tokens"
    shutil.copytree(interim / "encoder", encoder)
    with (encoder / "spiece.model").open("ab") as file:
        file.write(b"another")
    inputs = {"dialogues": interim / "dialogues.parquet", "labels": interim / "labels.json"}
    outputs = {name: tmp_path / name for name in ("classifier", "history", "record", "lock")}
    params = params_of(**TINY_PARAMS, device="cpu", precision="fp32")
    with pytest.raises(InputError) as caught:
        run_module.train(params, encoder=encoder, tokens=tokens, **inputs, **outputs)
    expected = f"{tokens} was not made with the tokenizer and card of {encoder}; run 'dvc repro'"
    assert str(caught.value) == expected


def test_the_lock_is_held_until_the_processes_have_parted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, free = tmp_path / "train.lock", []

    @contextmanager
    def joined(_: torch.device) -> Iterator[Ranks]:
        try:
            yield ALONE
        finally:
            free.append(locks.acquire_free(lock))

    monkeypatch.setattr(run_module, "joined", joined)
    inputs = dict.fromkeys(("encoder", "dialogues", "labels", "tokens"), tmp_path / "none")
    outputs = dict.fromkeys(("classifier", "history", "record"), tmp_path / "none")
    with pytest.raises(InputError, match="none/card.json"):
        run_module.train(params_of(device="cpu", precision="fp32"), **inputs, **outputs, lock=lock)
    assert free == [None]
