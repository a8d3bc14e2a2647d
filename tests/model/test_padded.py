"""The padded pass: filler, dropout, autocast, and what else is done with its families."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import distributed

from storyflower import Classifier, export
from storyflower.common.errors import InputError
from storyflower.encoder import prepare
from storyflower.interim.labels import LabelIndex
from storyflower.interim.tokens import TokenArrays
from storyflower.model.batch import Batch, make_batch
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.device import choose
from storyflower.model.folder import build_classifier, save_classifier
from storyflower.model.processes import Ranks

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 1,
}
LETTERS = [*"기화나", "##뻐", "##가"]
LENGTHS = np.array([9, 3, 12, 5])


def network_of(config: transformers.PreTrainedConfig, pooling: str = "first") -> EmotionClassifier:
    torch.manual_seed(0)
    encoder = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(0, 0.3)
    return EmotionClassifier(encoder, 3, 0.0, pooling).eval()


def batch_of(token_step: int) -> Batch:
    """Four texts of random ids, and filler up to a multiple of `token_step` tokens."""
    ids = np.random.default_rng(0).integers(2, 50, LENGTHS.sum()).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    table = TokenArrays(ids, offsets, np.array([0, 1, 2, 0]))
    return make_batch(table, np.arange(4), token_step=token_step)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("model", ["XLMRoberta", "DebertaV2"])
def test_filler_texts_change_nothing(model: str, pooling: str) -> None:
    """Neither a result nor a gradient; some filler texts have no token at all."""
    network = network_of(getattr(transformers, f"{model}Config")(**SMALL), pooling)
    seen = []
    for token_step in (1, 65):
        batch = batch_of(token_step)
        logits = network(batch)
        network.zero_grad()
        torch.nn.functional.cross_entropy(logits, batch.labels).backward()
        seen.append([logits, *(value.grad for value in network.parameters())])
    assert batch.lengths.tolist() == [3, 5, 9, 12, 36, 0]
    for plain, filled in zip(*seen, strict=True):
        assert torch.isfinite(filled).all()
        torch.testing.assert_close(filled, plain, atol=1e-6, rtol=0)


def test_training_has_the_dropout_of_the_modules() -> None:
    network = network_of(transformers.XLMRobertaConfig(**SMALL))
    batch = batch_of(8)
    still = network(batch)
    network.encoder.train()
    assert not torch.allclose(network(batch), network(batch), atol=1e-3)
    network.encoder.eval()
    assert torch.equal(network(batch), still)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("model", ["XLMRoberta", "ModernBert", "DebertaV2", "EuroBert"])
def test_autocast(model: str, pooling: str) -> None:
    network = network_of(getattr(transformers, f"{model}Config")(**SMALL), pooling)
    batch = batch_of(8)
    exact = network(batch)
    with choose("cpu", "bf16").autocast():
        rounded = network(batch)
    torch.nn.functional.cross_entropy(rounded.float(), batch.labels).backward()
    assert not torch.equal(rounded.float(), exact)
    torch.testing.assert_close(rounded.float(), exact, atol=0.2, rtol=0.1)
    assert all(torch.isfinite(value.grad).all() for value in network.parameters())


def test_weights_without_a_gradient_do_not_stop_several_processes(tmp_path: Path) -> None:
    """Longformer's for global attention, of which a classifier has none."""
    config = transformers.LongformerConfig(attention_window=4, sep_token_id=2, **SMALL)
    network = network_of(config)
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = Ranks(0, 2).wrap(network)
        for _ in range(2):
            wrapped(batch_of(8)).sum().backward()
    finally:
        distributed.destroy_process_group()
    assert any(parameter.grad is None for parameter in network.parameters())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier on a tiny ModernBERT."""
    root = tmp_path_factory.mktemp("modernbert")
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    config = transformers.ModernBertConfig(**{**SMALL, "vocab_size": len(special) + len(LETTERS)})
    network_of(config).encoder.save_pretrained(root / "tiny")
    (root / "tiny/vocab.txt").write_text("\n".join([*special, *LETTERS]), encoding="utf-8")
    card = root / "tiny.yaml"
    card.write_text("kind: path\nsource: tiny\nlicense: CC0-1.0\n", encoding="utf-8")
    prepare.prepare(card, root / "encoder")
    labels = LabelIndex(["기쁨", "분노", "불안"])
    network = build_classifier(root / "encoder", len(labels), 0.5)
    facts = {"params": {"dr_rate": 0.5, "max_len": 16}}
    save_classifier(
        network, root / "classifier", encoder=root / "encoder", labels=labels, facts=facts
    )
    return root / "classifier"


def test_predictions_in_bf16(classifier: Path) -> None:
    texts = ["기뻐", "화가 나 화가"]
    exact = Classifier.load(classifier, "cpu")
    rounded = Classifier.load(classifier, "cpu", precision="bf16")
    for one, other in zip(exact.predict(texts), rounded.predict(texts), strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=0.05)
        assert other.probabilities != one.probabilities
    assert {value.dtype for value in rounded._network.parameters()} == {torch.float32}


def test_export_says_which_families_it_knows(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "need_packages", lambda: None)
    with pytest.raises(
        InputError, match="encoder is of type 'modernbert', and export knows only"
    ) as said:
        export.export(classifier, tmp_path / "onnx")
    assert str(said.value).endswith("bert, roberta, electra, distilbert; train on one of those")
    assert not (tmp_path / "onnx").exists()
