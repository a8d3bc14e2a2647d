"""An encoder's modules built without transformers, which takes longer to import than to use.

In: a folder with a complete config.json and model.safetensors, as save_classifier writes them.
Out: modules with transformers' names and sums, for the families of forward.py, evaluation only.
Not supported: anything out of the ordinary (another activation, a weight too few or of another
shape). Then there is no encoder, and transformers reads the folder and says what is wrong.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from torch import nn

from storyflower.model.forward import UNPADDED

NAMES = {  # of DistilBERT's config, in the words of the others
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
}


class Unset:
    """Before a module's class: its weights stay unset, because the file's take their place."""

    def reset_parameters(self) -> None:
        """Initialise nothing."""


class Linear(Unset, nn.Linear):
    """nn.Linear."""


class Embedding(Unset, nn.Embedding):
    """nn.Embedding."""


class LayerNorm(Unset, nn.LayerNorm):
    """nn.LayerNorm."""


class BareEncoder(nn.Module):
    """What forward.py reads of a PreTrainedModel: its parts and its config."""

    def __init__(self, config: dict[str, Any], pooled: bool):
        super().__init__()
        self.config = SimpleNamespace(**config)
        c = self.config
        distilbert, electra = c.model_type == "distilbert", c.model_type == "electra"
        eps = 1e-12 if distilbert else c.layer_norm_eps
        width = c.embedding_size if electra else c.hidden_size
        self.embeddings = Embeddings(c, width, eps)
        if electra and width != c.hidden_size:
            self.embeddings_project = Linear(width, c.hidden_size)
        blocks = (distilbert_block(c, eps) if distilbert else bert_block(c, eps) for _ in layers(c))
        body = tree(layer=nn.ModuleList(blocks))
        self.add_module("transformer" if distilbert else "encoder", body)
        if pooled:
            self.pooler = Pooler(c.hidden_size)


class Embeddings(nn.Module):
    """Word, token type and position, added in transformers' order, and normalized."""

    def __init__(self, config: SimpleNamespace, width: int, eps: float):
        super().__init__()
        self.word_embeddings = Embedding(config.vocab_size, width)
        if config.model_type != "distilbert":
            self.token_type_embeddings = Embedding(config.type_vocab_size, width)
        self.position_embeddings = Embedding(config.max_position_embeddings, width)
        self.LayerNorm = LayerNorm(width, eps=eps)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """ids and positions (1 or texts, tokens) → (texts, tokens, width); all of token type 0."""
        words = self.word_embeddings(input_ids)
        if hasattr(self, "token_type_embeddings"):
            words = words + self.token_type_embeddings.weight[0]
        return self.LayerNorm(words + self.position_embeddings(position_ids))


class Pooler(nn.Module):
    """A dense layer with tanh on the first token."""

    def __init__(self, size: int):
        super().__init__()
        self.dense = Linear(size, size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(texts, tokens, hidden) → (texts, hidden)."""
        return torch.tanh(self.dense(states[:, 0]))


def layers(config: SimpleNamespace) -> range:
    return range(config.num_hidden_layers)


def tree(**parts: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, part in parts.items():
        module.add_module(name, part)
    return module


def bert_block(config: SimpleNamespace, eps: float) -> nn.Module:
    size, wide = config.hidden_size, config.intermediate_size
    own = {name: Linear(size, size) for name in ("query", "key", "value")}

    def output(columns: int) -> nn.Module:
        norm = LayerNorm(size, eps=eps)
        return tree(dense=Linear(columns, size), LayerNorm=norm, dropout=nn.Dropout())

    return tree(
        attention=tree(self=tree(**own, dropout=nn.Dropout()), output=output(size)),
        intermediate=tree(dense=Linear(size, wide), intermediate_act_fn=nn.GELU()),
        output=output(wide),
    )


def distilbert_block(config: SimpleNamespace, eps: float) -> nn.Module:
    size, wide = config.hidden_size, config.intermediate_size
    own = {name: Linear(size, size) for name in ("q_lin", "k_lin", "v_lin", "out_lin")}
    first, second = Linear(size, wide), Linear(wide, size)
    return tree(
        attention=tree(**own, dropout=nn.Dropout()),
        sa_layer_norm=LayerNorm(size, eps=eps),
        ffn=tree(lin1=first, lin2=second, activation=nn.GELU(), dropout=nn.Dropout()),
        output_layer_norm=LayerNorm(size, eps=eps),
    )


def bare_encoder(folder: Path) -> BareEncoder | None:
    """The encoder of a folder, float32, in evaluation mode; None where transformers must read it.

    Equal to what transformers loads from the folder, bit by bit.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config |= {ours: config[theirs] for theirs, ours in NAMES.items() if theirs in config}
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        if config["model_type"] not in UNPADDED or config["hidden_act"] != "gelu":
            return None
        if config["hidden_size"] % config["num_attention_heads"]:
            return None
        encoder = BareEncoder(config, any(name.startswith("pooler.") for name in weights))
        weights = {name: value.float() for name, value in weights.items()}
        encoder.load_state_dict(weights, assign=True)
    # Whatever is wrong with the folder, transformers has the words for it.
    except Exception:
        return None
    return encoder.requires_grad_(False).eval()
