"""Which weights decay, and how fast each layer learns."""

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModel,
    DebertaV2Config,
    EuroBertConfig,
    FlaubertConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    XLMRobertaConfig,
)

from storyflower.common.errors import InputError
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.folder import build_classifier
from storyflower.train.optimizer import make_optimizer
from tests.train.test_fit import FAMILIES, Bag, encoder_folder, fit, random_table, watched_steps

TINY = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
TINY |= {"intermediate_size": 32, "pad_token_id": 1}
FAR = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
MORE = {
    "modernbert": ModernBertConfig(**TINY, cls_token_id=2, sep_token_id=3),
    "eurobert": EuroBertConfig(**TINY, num_key_value_heads=2),
    "deberta-v2": DebertaV2Config(**TINY, **FAR, norm_rel_ebd="layer_norm", conv_kernel_size=3),
    "mpnet": MPNetConfig(**TINY),
    "xlm-roberta": XLMRobertaConfig(**TINY),
}


def three_layers(family: str) -> PreTrainedConfig:
    if family in MORE:
        return MORE[family]
    config = FAMILIES[family].__class__(**FAMILIES[family].to_dict())
    config.num_hidden_layers = 3
    return config


def classifier(config: PreTrainedConfig) -> EmotionClassifier:
    torch.manual_seed(0)
    return EmotionClassifier(AutoModel.from_config(config), 3, dr_rate=0.0)


def powers(network: EmotionClassifier, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """name → the power of 0.5 in each parameter's rate."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = optimizer.param_groups
    found = {names[id(p)]: group["scale"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(names)
    return {name: -torch.tensor(scale).log2().item() for name, scale in found.items()}


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_each_layer_learns_more_slowly_than_the_one_above(family: str) -> None:
    network = classifier(three_layers(family))
    optimizer = make_optimizer(network, 0.1, 0.25, torch.device("cpu"), layer_decay=0.5)
    for name, power in powers(network, optimizer).items():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        if numbers:
            expected = 3 - numbers[0]
        elif "embed" in name or "rel_" in name or "relative" in name or ".conv." in name:
            expected = 4
        elif family == "deberta-v2" and name.startswith("encoder.encoder.LayerNorm"):
            expected = 4  # of the table of distances
        else:
            assert any(word in name for word in ("linear", "pooler", "norm")), name
            expected = 0
        assert power == expected, name
    for group in optimizer.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.25}


def test_the_schedule_moves_every_layer_s_rate(tmp_path) -> None:
    network = build_classifier(encoder_folder("bert", tmp_path), 3, dr_rate=0.0)  # of one layer
    with watched_steps() as steps:
        fit(network, random_table(24), layer_decay=0.5, warmup_ratio=0.0, learning_rate=0.02)
    assert [sorted(step["rates"]) for step in steps] == [
        pytest.approx([0.02 * share * scale for scale in (0.25, 0.5, 1)])
        for share in (1, 0.75, 0.25)
    ]


def test_without_layer_decay_there_are_two_groups() -> None:
    network = Bag()  # which has no encoder to look for layers in
    optimizer = make_optimizer(network, 0.1, 0.25, torch.device("cpu"))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups] == [
        ["embedding.weight", "linear.weight"],
        ["norm.weight", "norm.bias", "linear.bias"],
    ]


@pytest.mark.parametrize(
    "config",
    [
        AlbertConfig(**TINY, embedding_size=8),
        # Its attentions, norms and products lie in lists of their own.
        FlaubertConfig(emb_dim=8, n_layers=3, n_heads=2, n_words=40),
        None,
    ],
)
def test_layers_that_cannot_be_told_apart(config: PreTrainedConfig | None) -> None:
    if config:
        network = classifier(config)  # ALBERT's layers are one
    else:
        network = classifier(three_layers("bert"))
        layers = network.encoder.encoder.layer
        layers[2] = layers[1]
    line = "has no numbered layers with weights of their own; set layer_decay: 1.0"
    with pytest.raises(InputError, match=line):
        make_optimizer(network, 0.1, 0.25, torch.device("cpu"), layer_decay=0.5)
    make_optimizer(network, 0.1, 0.25, torch.device("cpu"))


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_norms_of_every_kind_and_biases_do_not_decay(family: str) -> None:
    network = classifier(three_layers(family))
    optimizer = make_optimizer(network, 0.1, 0.25, torch.device("cpu"))
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for where, module in network.named_modules():
        norm = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("Norm")
        for name, parameter in module.named_parameters(recurse=False):
            exempt = norm or name.endswith("bias")
            assert decays[id(parameter)] == (0.0 if exempt else 0.25), f"{where}.{name}"
