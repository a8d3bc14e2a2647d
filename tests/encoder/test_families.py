"""Every family of encoders, from the hub's files to the classifier; and those that are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from storyflower.encoder import trial
from storyflower.encoder.card import Card
from storyflower.interim.labels import LabelIndex
from storyflower.interim.tokens import TokenArrays
from storyflower.model.batch import Batch, make_batch
from storyflower.model.folder import build_classifier, load_classifier, save_classifier
from storyflower.tokenizer.load import load_tokenizer
from tests.encoder.hub import Hub
from tests.encoder.test_encoder import (
    BERT_ORDER,
    BODY,
    ROBERTA_ORDER,
    TEXTS,
    cards,
    checkpoint,
    hub,
    prepare,
    refused,
    word_piece_files,
    word_pieces,
    write,
)

__all__ = ["cards", "hub"]  # fixtures

LABELS = LabelIndex([f"감정 {number}" for number in range(6)])
# Of each family: its config, the class whose weights lie on the hub, settings of its own, whether a
# pooler is left to the classifier, and the longest text.
FAMILIES = {
    "bert": ("Bert", "BertForPreTraining", {}, True, 80),
    "roberta": ("Roberta", "RobertaForMaskedLM", {}, False, 78),
    "electra": ("Electra", "ElectraForPreTraining", {"embedding_size": 8}, False, 80),
    "distilbert": (
        "DistilBert",
        "DistilBertForMaskedLM",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
        False,
        80,
    ),
    "xlm-roberta": ("XLMRoberta", "XLMRobertaModel", {}, True, 78),
    "camembert": ("Camembert", "CamembertForMaskedLM", {}, False, 78),
    "albert": ("Albert", "AlbertForPreTraining", {"embedding_size": 8}, False, 80),
    "modernbert": (
        "ModernBert",
        "ModernBertForMaskedLM",
        {"num_hidden_layers": 3, "local_attention": 8},
        False,
        80,
    ),
    "eurobert": ("EuroBert", "EuroBertForMaskedLM", {"num_key_value_heads": 1}, False, 80),
    "nomic_bert": ("NomicBert", "NomicBertForMaskedLM", {}, False, 80),
    "deberta-v2": (
        "DebertaV2",
        "DebertaV2ForMaskedLM",
        {
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "type_vocab_size": 0,
        },
        False,
        80,
    ),
    "mpnet": ("MPNet", "MPNetModel", {}, True, 78),
    "rembert": ("RemBert", "RemBertModel", {"input_embedding_size": 8}, True, 80),
    "longformer": ("Longformer", "LongformerForMaskedLM", {"attention_window": [8, 8]}, False, 78),
    "megatron-bert": ("MegatronBert", "MegatronBertForPreTraining", {}, True, 80),
    "big_bird": ("BigBird", "BigBirdForPreTraining", {"block_size": 4}, False, 80),
    # Its class cannot be built without a pooler.
    "squeezebert": ("SqueezeBert", "SqueezeBertForMaskedLM", {"embedding_size": 16}, True, 80),
}
PAD_ONE = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")  # count positions from it


def as_of_old(weights: dict[str, torch.Tensor]) -> None:
    """Add the buffer that checkpoints held before transformers 4.31."""
    for name in list(weights):
        if name.endswith("embeddings.word_embeddings.weight"):
            buffer = name.replace("word_embeddings.weight", "position_ids")
            weights[buffer] = torch.arange(BODY["max_position_embeddings"]).unsqueeze(0)


def published(hub: Hub, name: str) -> torch.nn.Module:
    """Put a tiny checkpoint on the hub; return transformers' own model of it, without head."""
    config, head, settings, _, _ = FAMILIES[name]
    order = ROBERTA_ORDER if name in PAD_ONE else BERT_ORDER
    ids = {"pad": "[PAD]", "bos": "[CLS]", "cls": "[CLS]", "eos": "[SEP]", "sep": "[SEP]"}
    ids = {f"{key}_token_id": order.index(token) for key, token in ids.items()}
    config = getattr(transformers, f"{config}Config")(
        **{"vocab_size": len(word_pieces(order)), **BODY, **ids, **settings}
    )
    files, network = checkpoint(config, head, safe=len(name) % 2 == 0, change=as_of_old)
    hub.publish("lab/tiny", {**files, **word_piece_files(order), "modeling.py": b"1/0"})
    return getattr(network, network.base_model_prefix, network)


def one_at_a_time(
    body: torch.nn.Module, texts: list[torch.Tensor], pooling: str, pooled: bool
) -> torch.Tensor:
    """The summaries of texts by transformers' own model, (texts, hidden)."""
    rows = []
    for text in texts:
        result = body(input_ids=text.unsqueeze(0))
        states = result.last_hidden_state[0]
        first = result.pooler_output[0] if pooled else states[0]
        rows.append(states.mean(0) if pooling == "mean" else first)
    return torch.stack(rows)


def batch_of(folder: Path) -> tuple[Batch, list[torch.Tensor]]:
    """TEXTS as a batch, and each text's ids in the batch's order."""
    tokens = load_tokenizer(folder).encode(TEXTS, 64)
    table = TokenArrays(tokens.ids, tokens.offsets, np.zeros(len(TEXTS), np.int64))
    batch = make_batch(table, np.arange(len(TEXTS)), token_step=16)
    texts = np.split(tokens.ids.astype(np.int64), tokens.offsets[1:-1])
    return batch, [torch.from_numpy(texts[row]) for row in batch.rows]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_computes_what_transformers_computes(
    name: str, hub: Hub, cards: Path, tmp_path: Path
) -> None:
    body = published(hub, name)
    output = prepare(write(cards))
    assert not any("modeling" in path for path in hub.paths())
    card = json.loads((output / "card.json").read_text(encoding="utf-8"))
    assert card["max_length"] == FAMILIES[name][4]
    batch, texts = batch_of(output)
    for pooling in ("first", "mean"):
        (output / "card.json").write_text(json.dumps(card | {"pooling": pooling}))
        network = build_classifier(output, len(LABELS), dr_rate=0.5).eval()
        logits = network(batch)
        pooled = FAMILIES[name][3] and pooling == "first"
        assert any(key.startswith("pooler.") for key in network.encoder.state_dict()) == pooled
        summaries = one_at_a_time(body, texts, pooling, pooled)
        expected = functional.linear(summaries, network.linear.weight, network.linear.bias)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)

        labels = torch.arange(len(texts)) % len(LABELS)
        body.zero_grad()
        for some in (logits, expected):
            functional.cross_entropy(some, labels).backward()
        gradients = {key: value.grad for key, value in body.named_parameters()}
        for key, value in network.encoder.named_parameters():
            torch.testing.assert_close(value.grad, gradients[key], atol=1e-5, rtol=1e-5, msg=key)

        folder = tmp_path / pooling
        facts = {"params": {"dr_rate": 0.5, "max_len": 64}}
        save_classifier(network, folder, encoder=output, labels=LABELS, facts=facts)
        loaded, _ = load_classifier(folder)
        with torch.no_grad():
            assert torch.equal(loaded(batch), network(batch))


def test_a_long_text_means_the_same_before_and_after_a_short_one(hub: Hub, cards: Path) -> None:
    """BigBird's own attention is partly random until the first short text."""
    published(hub, "big_bird")
    network = build_classifier(prepare(write(cards)), len(LABELS), dr_rate=0.5).eval()
    ids = torch.randint(5, 40, (75,), generator=torch.Generator().manual_seed(0)).numpy()
    table = TokenArrays(ids, np.array([0, 70, 75]), np.zeros(2, np.int64))
    long, short = (make_batch(table, np.array([row])) for row in (0, 1))
    with torch.no_grad():
        before, _, after = network(long), network(short), network(long)
    assert torch.equal(before, after)


# ---------------------------------------------------------------- what is refused

PLAIN = {**BODY, "vocab_size": len(word_pieces(BERT_ORDER)), "pad_token_id": 0}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 80}
CONV = {"embedding_size": 16, "head_ratio": 1, "conv_kernel_size": 3}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
LEFT_TO_RIGHT = "the first token's state does not change with the last token, so it reads from left"
SEES_PADDING = "its states of a text change with the padding beside it, by "
REFUSED = {
    "gpt2": ("GPT2", "GPT2LMHeadModel", GPT2, LEFT_TO_RIGHT),
    "qwen3": ("Qwen3", "Qwen3Model", {"num_key_value_heads": 1, "head_dim": 8}, LEFT_TO_RIGHT),
    "convbert": ("ConvBert", "ConvBertForMaskedLM", CONV, SEES_PADDING),
    "fnet": ("FNet", "FNetForMaskedLM", {}, SEES_PADDING),
    "bert": ("Bert", "BertForMaskedLM", {"is_decoder": True}, "differ from transformers' own, by "),
    "t5": ("T5", "T5Model", T5, "an encoder with a decoder, which a classifier has no use for"),
    "vit": ("ViT", "ViTModel", {}, "it reads pixel_values, not the token ids of texts"),
    "siglip_text_model": ("SiglipText", "SiglipTextModel", {}, "a part of a larger model, which"),
    "canine": (
        "Canine",
        "CanineModel",
        {"num_hash_buckets": 8},
        "cannot compute a batch of padded",
    ),
}


@pytest.mark.parametrize(
    ("name", "pooling"), [("gpt2", "mean"), *((name, "first") for name in REFUSED)]
)
def test_what_encodes_no_text_both_ways_is_refused(
    name: str, pooling: str, hub: Hub, cards: Path
) -> None:
    config, head, settings, expected = REFUSED[name]
    config = getattr(transformers, f"{config}Config")(**{**PLAIN, **settings})
    files, _ = checkpoint(config, head, safe=True)
    hub.publish("lab/tiny", {**files, **word_piece_files(BERT_ORDER)})
    said = refused(write(cards, pooling=pooling))
    assert said.startswith(f"lab/tiny: a model of type {name!r}: ")
    assert expected in said
    assert said.endswith(
        "; choose an encoder that reads text both ways: docs/encoders.md names some"
    )


def test_a_family_that_transformers_does_not_know(hub: Hub, cards: Path) -> None:
    published(hub, "albert")
    files = hub.repos["lab/tiny"][0]
    for change in ({"model_type": "kobert"}, {"model_type": ["bert"]}, {"model_type": 7}):
        document = json.loads(files["config.json"]) | change
        hub.publish("lab/tiny", {**files, "config.json": json.dumps(document).encode()})
        said = refused(write(cards))
        assert said.startswith(
            f"lab/tiny: a model of type {change['model_type']!r}, which transformers "
            f"{transformers.__version__} does not know (code of a checkpoint is not run); choose"
        )


def test_weights_of_the_encoder_that_transformers_does_not_use(hub: Hub, cards: Path) -> None:
    """As a BERT with relative positions has them, which transformers 5 would compute without."""
    config = transformers.BertConfig(**PLAIN)
    name = "bert.encoder.layer.0.attention.self.distance_embedding.weight"

    def with_distances(weights: dict[str, torch.Tensor]) -> None:
        weights[name] = torch.zeros(159, 8)

    files, _ = checkpoint(config, "BertForMaskedLM", safe=True, change=with_distances)
    hub.publish("lab/tiny", {**files, **word_piece_files(BERT_ORDER)})
    assert refused(write(cards)).endswith(
        "the weights do not fit config.json: bert.encoder.layer.0.attention.self.distance_"
        "embedding.weight has no place"
    )


def test_the_class_in_an_old_config_tells_the_family(hub: Hub, cards: Path) -> None:
    published(hub, "xlm-roberta")
    files = hub.repos["lab/tiny"][0]
    document = json.loads(files["config.json"])
    del document["model_type"]
    document["architectures"] = ["XLMRobertaForMaskedLM"]
    document["_attn_implementation"] = "flash_attention_2"  # of the machine that saved it
    hub.publish("lab/tiny", {**files, "config.json": json.dumps(document).encode()})
    config = json.loads((prepare(write(cards)) / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "xlm-roberta"


def test_rounding_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """What many layers round in float32 may be more than is allowed; float64 shows the cause."""
    monkeypatch.setattr(trial, "TOLERANCE", 1e-9)
    torch.manual_seed(0)
    body = transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**PLAIN)).eval()
    weights = {name: value.clone() for name, value in body.state_dict().items()}
    random = torch.get_rng_state()
    trial.try_out(body, Card(kind="hub", source="lab/tiny", license="unknown"))
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in body.state_dict().items():
        assert value.dtype == weights[name].dtype
        assert torch.equal(value, weights[name])
