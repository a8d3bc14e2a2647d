"""--start: what is taken on of a folder, and which folders are refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from pretrain.objective import PretrainingModel
from pretrain.start import load_heads, save_heads
from pretrain.train import pretrain, random_encoder
from storyflower.common.errors import InputError
from tests.pretrain.support import RECIPE, epochs_of, files, some_texts


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("first")
    pretrain(some_texts(), RECIPE, root / "first", checkpoint_root=root / "checkpoints")
    return root / "first"


@pytest.fixture
def start(first: Path, tmp_path: Path) -> Path:
    return shutil.copytree(first, tmp_path / "start")


def test_it_goes_on_from_a_folders_weights_with_its_vocabulary(start: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=20, rate=1e-4, layers=3, hidden=64, heads=1, pieces=999)
    pretrain(some_texts(), recipe, tmp_path / "second", start=start, checkpoint_root=tmp_path / "c")
    before, after = epochs_of(start), epochs_of(tmp_path / "second")
    for name in ("held_out_loss", "held_out_label_loss"):
        assert after[0][name] < before[0][name]
    assert files(start)["spiece.model"] == files(tmp_path / "second")["spiece.model"]
    record = json.loads((tmp_path / "second/pretraining.json").read_text())
    assert record["start"]["folder"] == "start"
    config = json.loads((tmp_path / "second/config.json").read_text())
    shape = {"layers": 1, "hidden": 32, "heads": 2, "pieces": config["vocab_size"]}
    assert record["recipe"].items() >= shape.items()  # what it has, whatever was asked for


def test_no_steps_write_what_was_there(start: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=0)
    pretrain(some_texts(), recipe, tmp_path / "second", start=start)
    same = ("spiece.model", "config.json", "model.safetensors", "heads.safetensors")
    before, after = files(start), files(tmp_path / "second")
    assert [after[name] for name in same] == [before[name] for name in same]
    record = json.loads(after["pretraining.json"])
    (start / "heads.safetensors").unlink()
    pretrain(some_texts(), recipe, tmp_path / "second", start=start)
    assert "heads.safetensors" not in files(tmp_path / "second")
    other = json.loads(files(tmp_path / "second")["pretraining.json"])
    assert other["start"]["sha256"] != record["start"]["sha256"]


def test_a_head_goes_to_the_task_of_its_name_and_labels(tmp_path: Path, capsys) -> None:
    encoder = random_encoder(RECIPE, 50)
    old = PretrainingModel(encoder, [2, 2, 2])
    save_heads(old, {"kept": ["a", "b"], "turned": ["c", "d"], "old": ["e", "f"]}, tmp_path)
    new = PretrainingModel(encoder, [2, 2, 2])
    fresh = {name: value.clone() for name, value in new.state_dict().items()}
    load_heads(new, {"new": ["e", "f"], "turned": ["d", "c"], "kept": ["a", "b"]}, tmp_path)
    loaded = new.state_dict()
    for name in ("dense.weight", "norm.bias", "bias"):
        torch.testing.assert_close(loaded[name], old.state_dict()[name], atol=1e-3, rtol=1e-3)
    for part in ("weight", "bias"):
        expected = old.state_dict()[f"heads.0.{part}"]
        torch.testing.assert_close(loaded[f"heads.2.{part}"], expected, atol=1e-3, rtol=1e-3)
        for number in (0, 1):
            assert (loaded[f"heads.{number}.{part}"] == fresh[f"heads.{number}.{part}"]).all()
    out = capsys.readouterr().out
    assert "new: " in out and "turned: " in out and "kept: " not in out


def test_heads_of_no_named_tasks_or_of_another_shape_begin_anew(start: Path) -> None:
    saved = load_file(start / "heads.safetensors")
    saved["bias"] = torch.zeros(3)
    save_file(saved, start / "heads.safetensors")  # as they were written before: no metadata
    model = PretrainingModel(random_encoder(RECIPE, 50), [3])
    fresh = model.heads[0].weight.clone()
    load_heads(model, some_texts().tasks, start)
    assert (model.heads[0].weight == fresh).all() and model.bias.shape == (50,)
    assert (model.dense.bias == saved["dense.bias"]).all()


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def other_ids(folder: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(some_texts().label_of),
        model_prefix=str(folder / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        **{"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "control_symbols": "[MASK]"},
        **{"pad_piece": "[PAD]", "unk_piece": "[UNK]", "bos_piece": "[CLS]", "eos_piece": "[SEP]"},
        minloglevel=2,
    )


def larger(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.LayerNorm.bias"] = torch.full((32,), 1e6)
    save_file(weights, folder / "model.safetensors")


def fewer_pieces(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    weights[name] = weights[name][:9].contiguous()
    save_file(weights, folder / "model.safetensors")
    change_config(folder, vocab_size=9)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: shutil.rmtree(folder), "--start .*: has no config.json; name a folder"),
        (lambda folder: (folder / "spiece.model").unlink(), "--start .*: has no spiece.model"),
        (lambda folder: (folder / "config.json").write_text("{"), "not readable as JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "model_type None, not 'bert'"),
        (lambda folder: change_config(folder, model_type="electra"), "'electra', not 'bert'"),
        (lambda folder: change_config(folder, hidden_size=31), "start: damaged"),
        (other_ids, r"have the ids 1, 0, 2, 3, 4, not 0 to 4, as KoBERT's have; name another"),
        (fewer_pieces, r"spiece.model has \d+ pieces and the encoder 9 embeddings"),
        (larger, "embeddings.LayerNorm.bias: a weight is no number, or too large for 16 bits"),
    ],
)
def test_a_folder_that_cannot_be_a_start(start: Path, tmp_path: Path, change, expected) -> None:
    change(start)
    with pytest.raises(InputError, match=f"^[^\n]*{expected}[^\n]*$"):
        pretrain(some_texts(), replace(RECIPE, steps=0), tmp_path / "second", start=start)
    assert not (tmp_path / "second").exists()


def test_texts_longer_than_a_start_has_positions(start: Path, tmp_path: Path) -> None:
    weights = load_file(start / "model.safetensors")
    name = "embeddings.position_embeddings.weight"
    weights[name] = weights[name][:64].contiguous()
    save_file(weights, start / "model.safetensors")
    change_config(start, max_position_embeddings=64)
    with pytest.raises(InputError, match=f"^--max-len 128: .*{re.escape(str(start))} has 64 posi"):
        pretrain(some_texts(), RECIPE, tmp_path / "second", start=start)


def test_damaged_heads(start: Path, tmp_path: Path) -> None:
    (start / "heads.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(InputError, match="heads.safetensors: damaged .*; without it, the heads"):
        pretrain(
            some_texts(), RECIPE, tmp_path / "second", start=start, checkpoint_root=tmp_path / "c"
        )
