"""The encoder without transformers' import, and the packed products: they compute the same."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from storyflower.interim.tokens import TokenArrays
from storyflower.model import forward
from storyflower.model.bare import bare_encoder
from storyflower.model.batch import Batch, make_batch
from storyflower.model.folder import read_encoder
from storyflower.model.forward import UNPADDED
from storyflower.model.packed import pack

BODY = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
}
MODELS = {
    "bert": (transformers.BertConfig, transformers.BertModel, {"pad_token_id": 1}),
    "roberta": (
        transformers.RobertaConfig,
        transformers.RobertaModel,
        {"pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "electra": (transformers.ElectraConfig, transformers.ElectraModel, {"embedding_size": 8}),
    "distilbert": (
        transformers.DistilBertConfig,
        transformers.DistilBertModel,
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    ),
}


def saved(name: str, folder: Path) -> Path:
    """An encoder folder with random weights."""
    config, model, more = MODELS[name]
    torch.manual_seed(0)
    network = model(config(**BODY, **more))
    with torch.no_grad():  # also biases and norms, whose first values hide that one is lost
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Texts of 1 to 18 random ids."""
    lengths = np.arange(1, 19)
    ids = np.random.default_rng(0).integers(0, 50, lengths.sum()).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return make_batch(TokenArrays(ids, offsets, np.zeros(18, np.int64)), np.arange(18))


def test_every_family_is_known() -> None:
    assert set(MODELS) == set(UNPADDED)


@pytest.mark.parametrize("name", MODELS)
def test_the_bits_are_those_of_transformers(name: str, batch: Batch, tmp_path: Path) -> None:
    theirs = read_encoder(saved(name, tmp_path))
    ours = bare_encoder(tmp_path)
    weights = theirs.state_dict()
    assert ours.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in ours.state_dict().items())
    with torch.inference_mode():
        expected = forward.states(theirs, batch)
        assert torch.equal(forward.states(ours, batch), expected)
        if name in ("bert", "roberta"):
            states = expected.unsqueeze(1)
            assert torch.equal(ours.pooler(states), theirs.pooler(states))
        else:
            assert not hasattr(ours, "pooler")


@pytest.mark.parametrize("name", MODELS)
def test_packed_products_are_the_same_products(name: str, batch: Batch, tmp_path: Path) -> None:
    encoder = bare_encoder(saved(name, tmp_path))
    with torch.inference_mode():
        expected = forward.states(encoder, batch)
        pack(encoder)
        torch.testing.assert_close(forward.states(encoder, batch), expected, atol=1e-5, rtol=0)
    large = [key for key, value in encoder.state_dict().items() if len(value) and value.dim() == 2]
    assert all("embeddings" in key or "pooler" in key for key in large)  # the rest is freed


def edit(**values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | values
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return change


def without_a_weight(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    safetensors.torch.save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        edit(hidden_act="gelu_new"),
        edit(model_type="albert"),
        edit(num_hidden_layers=1),
        edit(num_attention_heads=7),
        edit(vocab_size=49),
        edit(hidden_size="x"),
        without_a_weight,
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
    ],
)
def test_whatever_is_unusual_is_left_to_transformers(change: Callable, tmp_path: Path) -> None:
    change(saved("bert", tmp_path))
    assert bare_encoder(tmp_path) is None


@pytest.mark.slow
def test_loading_a_classifier_imports_no_slow_package(classifier: Path) -> None:
    code = f"""
import sys
from storyflower import Classifier
Classifier.load({str(classifier)!r}, "cpu")
slow = ("transformers", "torch._dynamo", "sympy", "scipy", "pandas", "sklearn", "mlflow")
print([name for name in slow if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
