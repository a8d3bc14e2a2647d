"""The classifier's folder: whole, damaged, and read by plain transformers."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from storyflower import Classifier
from storyflower.common.errors import InputError
from storyflower.encoder import prepare
from storyflower.interim.labels import LabelIndex
from storyflower.interim.tokens import TokenArrays
from storyflower.model import classifier
from storyflower.model.batch import make_batch
from storyflower.model.folder import build_classifier, digests, load_classifier, save_classifier
from storyflower.tokenizer.load import load_tokenizer
from tests.support import write_tiny_encoder

LABELS = LabelIndex(["기쁨", "분노", "불안"])
TEXTS = ["합격했어 3번째", "잠이 안 와", "소리를 질렀어 새치기를 당했어 7번째"]


def tiny_encoder(root: Path) -> Path:
    """root/encoder as the encoder stage makes it from the tiny card; here it has a pooler."""
    card = write_tiny_encoder(root)
    config = transformers.BertConfig.from_pretrained(root / "tiny", intermediate_size=64)
    torch.manual_seed(1)
    transformers.BertModel(config).save_pretrained(root / "tiny")
    prepare.prepare(card, root / "encoder")
    return root / "encoder"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(source: Path) -> tuple[Path, classifier.EmotionClassifier]:
    """A classifier's folder as the train stage writes it, and the classifier in memory."""
    torch.manual_seed(3)
    network = build_classifier(source, len(LABELS), dr_rate=0.5).eval()
    with torch.no_grad():  # the first weights are so small that a lost layer would not show
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    folder = source.parent / "classifier"
    params = {"dr_rate": 0.5, "max_len": 16}
    save_classifier(network, folder, encoder=source, labels=LABELS, facts={"params": params})
    return folder, network


@pytest.fixture
def copy(trained: tuple[Path, classifier.EmotionClassifier], tmp_path: Path) -> Path:
    return shutil.copytree(trained[0], tmp_path / "classifier")


def logits_of(network: classifier.EmotionClassifier, folder: Path) -> torch.Tensor:
    """Logits of TEXTS in their order, (3, classes)."""
    tokens = load_tokenizer(folder).encode(TEXTS, 16)
    batch = make_batch(TokenArrays(tokens.ids, tokens.offsets, np.zeros(3, np.int64)), np.arange(3))
    with torch.inference_mode():
        return network(batch)[np.argsort(batch.rows)]


def test_what_was_saved_is_loaded(trained: tuple[Path, classifier.EmotionClassifier]) -> None:
    folder, network = trained
    loaded, document = load_classifier(folder)
    assert not loaded.training
    assert document["labels"] == list(LABELS.names)
    assert torch.equal(logits_of(loaded, folder), logits_of(network, folder))


def test_the_pooling_of_the_card_is_kept(tmp_path: Path) -> None:
    card = write_tiny_encoder(tmp_path)
    card.write_text(card.read_text(encoding="utf-8") + "pooling: mean\n", encoding="utf-8")
    prepare.prepare(card, tmp_path / "encoder")
    network = build_classifier(tmp_path / "encoder", len(LABELS), 0.5).eval()
    folder = tmp_path / "classifier"
    facts = {"params": {"dr_rate": 0.5, "max_len": 16}}
    save_classifier(network, folder, encoder=tmp_path / "encoder", labels=LABELS, facts=facts)
    logits = logits_of(network, folder)
    assert torch.equal(logits_of(load_classifier(folder)[0], folder), logits)
    network.pooling = "first"
    assert not torch.allclose(logits_of(network, folder), logits)


@pytest.mark.slow
def test_plain_transformers_loads_the_folder(
    trained: tuple[Path, classifier.EmotionClassifier], tmp_path: Path
) -> None:
    """In a process of its own that cannot import storyflower: the same logits from the parts."""
    folder, network = trained
    code = """
import json, sys
import safetensors.torch, torch
from transformers import AutoModel
folder, texts = sys.argv[1], json.loads(sys.argv[2])
encoder, report = AutoModel.from_pretrained(
    folder, local_files_only=True, output_loading_info=True)
head = safetensors.torch.load_file(folder + "/head.safetensors")
with torch.inference_mode():
    pooled = torch.cat([encoder(input_ids=torch.tensor([ids])).pooler_output for ids in texts])
logits = torch.nn.functional.linear(pooled, head["weight"], head["bias"])
assert not any(map(len, report.values())), report
assert not any(name.split(".")[0] == "storyflower" for name in sys.modules)
print(json.dumps([encoder.config._attn_implementation, logits.tolist()]))
"""
    tokens = load_tokenizer(folder).encode(TEXTS, 16)
    ids = [part.tolist() for part in np.split(tokens.ids, tokens.offsets[1:-1])]
    words = [sys.executable, "-c", code, str(folder), json.dumps(ids)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    attention, logits = json.loads(done.stdout)
    assert attention in ("sdpa", "eager")
    torch.testing.assert_close(torch.tensor(logits), logits_of(network, folder), atol=1e-5, rtol=0)
    assert "storyflower" not in (folder / "config.json").read_text(encoding="utf-8")


# ---------------------------------------------------------------- damage


def edit(name: str, **values: Any) -> Callable[[Path], None]:
    """Change keys of a JSON file; None removes one."""

    def change(folder: Path) -> None:
        document = json.loads((folder / name).read_text(encoding="utf-8"))
        document |= values
        document = {key: value for key, value in document.items() if value is not None}
        (folder / name).write_text(json.dumps(document), encoding="utf-8")

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40])


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / name)
        change(weights)
        safetensors.torch.save_file(weights, folder / name)

    return rewrite


def in_int8(name: str) -> Callable[[Path], None]:
    """As a quantizer writes it that renews the checksum, too."""

    def change(folder: Path) -> None:
        tensors(name, lambda w: w.update({key: w[key].to(torch.int8) for key in w}))(folder)
        weights = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))["weights"]
        edit("classifier.json", weights=weights | digests(folder, [name]))(folder)

    return change


def flip(name: str) -> Callable[[Path], object]:
    """One bit in the last weight."""

    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-2] ^= 1
        (folder / name).write_bytes(content)

    return change


# What is done to an encoder's folder, or the encoder's part of a classifier's, and what is said.
ENCODER_DAMAGE = {
    "more layers": (edit("config.json", num_hidden_layers=2), "encoder.layer.1.* is missing"),
    "fewer layers": (edit("config.json", num_hidden_layers=0), "encoder.layer.0.* has no place"),
    "other size": (edit("config.json", intermediate_size=48), "intermediate.* is 64, not 48"),
    "heads": (edit("config.json", num_attention_heads=7), r"damaged \(The hidden size \(32\)"),
    "no number": (edit("config.json", hidden_size="x"), r"damaged \(Validation error"),
    "activation": (edit("config.json", hidden_act="none"), r"damaged \('none'\)"),
    "family": (edit("config.json", model_type="kobert"), r"damaged \(The checkpoint you are"),
    "no family": (edit("config.json", model_type=None), r"damaged \(Unrecognized model"),
    "no JSON": (write("config.json", b"{"), "not a valid JSON"),
    "no config": (remove("config.json"), "config.json: not found; "),
    "no weights": (remove("model.safetensors"), "model.safetensors: not found; "),
    "cut weights": (cut("model.safetensors"), r"damaged \(.*not fully covered"),
    "empty weights": (write("model.safetensors", b""), r"damaged \(.*header too small"),
    "a weight less": (
        tensors("model.safetensors", lambda w: w.pop("encoder.layer.0.output.dense.bias")),
        "encoder.layer.0.output.dense.bias is missing",
    ),
    "half a pooler": (
        tensors("model.safetensors", lambda w: w.pop("pooler.dense.weight")),
        "pooler.dense.weight is missing",
    ),
    "a weight more": (
        tensors("model.safetensors", lambda w: w.update(more=torch.ones(2))),
        "more has no place",
    ),
}
CLASSIFIER_DAMAGE = {
    "head in int8": (in_int8("head.safetensors"), r"head.safetensors: damaged \(.*floating-point"),
    "encoder in int8": (in_int8("model.safetensors"), r"damaged \(its weights are I8, and only"),
    "no head": (remove("head.safetensors"), "head.safetensors: not found; train a classifier"),
    "cut head": (cut("head.safetensors"), r"head.safetensors: damaged \("),
    "another head": (
        tensors("head.safetensors", lambda w: w.update(weight=torch.ones(3, 48))),
        r"holds .*\(3, 48\).* need .*\(3, 32\)",
    ),
    "head of more classes": (
        tensors("head.safetensors", lambda w: w.update(weight=torch.ones(4, 32))),
        "but 3 labels",
    ),
    "half a head": (
        tensors("head.safetensors", lambda w: w.pop("bias")),
        "its parts are of different models",
    ),
    "a bit of the head": (flip("head.safetensors"), r"head.safetensors: damaged \(its checksum"),
    "a bit of the weights": (flip("model.safetensors"), r"model.safetensors: damaged \(its check"),
    "no document": (remove("classifier.json"), "classifier.json: not found; train a classifier"),
    "cut document": (write("classifier.json", b'{"labels": ['), r"classifier.json: damaged \("),
    "document of another kind": (write("classifier.json", b"[]"), r"classifier.json: damaged \("),
    "a label less": (edit("classifier.json", labels=["기쁨", "분노"]), "but 2 labels"),
    "no labels": (edit("classifier.json", labels=None), r"damaged \('labels' is missing\)"),
    "no checksum": (edit("classifier.json", weights={}), "'head.safetensors' is missing"),
    "no params": (edit("classifier.json", params=None), r"damaged \('params' is missing\)"),
    "no max_len": (edit("classifier.json", params={"dr_rate": 0.5}), "'max_len' is missing"),
    "another vocabulary": (write("spiece.model", b"other"), "the tokenizer, or config.json, is n"),
    "no vocabulary": (remove("spiece.model"), "the tokenizer, or config.json, is not the one"),
    **{
        # A tokenizer would read them, or transformers' own
        f"{name} since": (write(name, b"{}"), "the tokenizer, or config.json, is not the one")
        for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
    },
    "another card": (edit("card.json", pretokenize="none"), "the tokenizer, or config.json, is"),
    # transformers would load both and compute something else.
    "other heads": (edit("config.json", num_attention_heads=4), "or config.json, is not the one"),
    "another activation": (edit("config.json", hidden_act="relu"), "or config.json, is not the"),
}


def one_line(error: pytest.ExceptionInfo[InputError], folder: Path) -> None:
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(folder))


@pytest.mark.parametrize("name", ENCODER_DAMAGE)
def test_damaged_encoder_is_refused(
    name: str, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, expected = ENCODER_DAMAGE[name]
    transformers.utils.logging.add_handler(caplog.handler)
    folder = shutil.copytree(source, tmp_path / "encoder")
    change(folder)
    try:
        with pytest.raises(InputError, match=expected) as error:
            build_classifier(folder, 3, dr_rate=0.5)
    finally:
        transformers.utils.logging.remove_handler(caplog.handler)
    one_line(error, folder)
    assert not caplog.messages  # transformers' tables of weights would hide that line


@pytest.mark.parametrize("name", [*CLASSIFIER_DAMAGE, *ENCODER_DAMAGE])
def test_damaged_classifier_is_refused(name: str, copy: Path) -> None:
    change, expected = (CLASSIFIER_DAMAGE | ENCODER_DAMAGE)[name]
    change(copy)
    if name in ENCODER_DAMAGE and (copy / "config.json").is_file():
        # What the encoder's own check would say, even if somebody had changed the digest too.
        document = json.loads((copy / "classifier.json").read_text(encoding="utf-8"))
        document["tokenizer"] = digests(copy, document["tokenizer"])
        (copy / "classifier.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match=expected) as error:
        Classifier.load(copy, "cpu")
    one_line(error, copy)


def test_no_folder_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(InputError, match=r"classifier\.json: not found; train a classifier"):
            Classifier.load(folder, "cpu")
        with pytest.raises(InputError, match=r"config\.json: not found; 'dvc repro' makes it"):
            build_classifier(folder, 3, dr_rate=0.5)
