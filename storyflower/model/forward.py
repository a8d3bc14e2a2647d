"""An encoder's forward pass without padding, and without computing results that nothing uses.

In: a transformers encoder and a batch of texts end to end.
Out: the last hidden states of all tokens, or of chosen ones, such as each text's first.
BERT, RoBERTa, ELECTRA and DistilBERT are computed here, every other family by padded.py. The
parameters stay in transformers' own modules, so checkpoints load and save as usual. Only the
computation differs: query, key and value in one product, attention within each text (attention.py),
dropout from one random byte per value (dropout.py), and in the last layer only the chosen tokens
after the attention.
Not supported: all hidden states; gradient checkpointing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from storyflower.model import padded
from storyflower.model.attention import make_attention
from storyflower.model.batch import Batch
from storyflower.model.dropout import dropout
from storyflower.model.linear import in_bfloat16

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNPADDED = ("bert", "roberta", "electra", "distilbert")  # model_type in config.json
Product = Callable[[torch.Tensor], torch.Tensor]  # (tokens, columns) → (tokens, rows)


@dataclass(frozen=True)
class Layer:
    """The parts of one transformer layer, with the same names for every family."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    mix: Product  # after the attention heads
    mix_norm: nn.LayerNorm
    widen: Product
    activation: Callable[[torch.Tensor], torch.Tensor]
    narrow: Product
    narrow_norm: nn.LayerNorm
    drop: nn.Dropout  # after mix and after narrow
    drop_weights: nn.Dropout  # on the attention weights
    packed: Product | None = None  # query, key and value, once packed.py has joined them

    def joined(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight (3 * hidden, hidden) and bias (3 * hidden,) of query, key and value in one."""
        parts = (self.query, self.key, self.value)
        return torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])


def layers(encoder: "PreTrainedModel") -> Iterator[Layer]:
    """The layers of an encoder, in order from the embeddings up."""
    if encoder.config.model_type == "distilbert":
        for block in encoder.transformer.layer:
            attention, ffn = block.attention, block.ffn
            yield Layer(
                *(attention.q_lin, attention.k_lin, attention.v_lin, attention.out_lin),
                *(block.sa_layer_norm, ffn.lin1, ffn.activation, ffn.lin2),
                *(block.output_layer_norm, ffn.dropout, attention.dropout),
            )
        return
    for block in encoder.encoder.layer:
        attention, after = block.attention.self, block.attention.output
        yield Layer(
            *(attention.query, attention.key, attention.value, after.dense, after.LayerNorm),
            *(block.intermediate.dense, block.intermediate.intermediate_act_fn),
            *(block.output.dense, block.output.LayerNorm, after.dropout, attention.dropout),
        )


def states(
    encoder: "PreTrainedModel", batch: Batch, tokens: torch.Tensor | None = None
) -> torch.Tensor:
    """Last hidden states of all tokens of the batch, or of some, (chosen, hidden).

    `tokens`, (chosen,) int64, are their indices; `batch.first` is every dialogue's first token.
    Runs in the precision of torch's autocast if that is on.
    """
    config = encoder.config
    if config.model_type not in UNPADDED:
        return padded.states(encoder, batch, tokens)
    # RoBERTa's positions start after its pad id.
    shift = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    ids, positions = batch.ids.unsqueeze(0), (batch.positions + shift).unsqueeze(0)
    hidden = encoder.embeddings(input_ids=ids, position_ids=positions)[0]  # (tokens, hidden)
    if hasattr(encoder, "embeddings_project"):  # ELECTRA's embeddings may be narrower
        hidden = encoder.embeddings_project(hidden)
    if hidden.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # The same type as autocast gives after every later LayerNorm.
        hidden = hidden.to(torch.get_autocast_dtype("cpu"))
    attend = make_attention(batch, config.num_attention_heads, hidden.dtype)
    for number, layer in enumerate(getattr(encoder, "packed", layers(encoder)), start=1):
        qkv = multiply(hidden, layer)  # (tokens, 3 * hidden)
        mixed = attend(qkv, rate(layer.drop_weights))
        if number == config.num_hidden_layers and tokens is not None:
            hidden, mixed = hidden[tokens], mixed[tokens]  # (chosen, hidden)
        hidden = layer.mix_norm(dropout(multiply(mixed, layer.mix), rate(layer.drop)) + hidden)
        wide = layer.activation(multiply(hidden, layer.widen))
        hidden = layer.narrow_norm(dropout(multiply(wide, layer.narrow), rate(layer.drop)) + hidden)
    return hidden


def multiply(rows: torch.Tensor, product: Product | Layer) -> torch.Tensor:
    """(tokens, columns) → a product's (tokens, rows); of a layer: query, key and value in one."""
    joint = isinstance(product, Layer)
    if joint and product.packed:
        return product.packed(rows)
    parts = (product.query, product.key, product.value) if joint else (product,)
    result = in_bfloat16(rows, parts)
    if result is not None:
        return result
    return functional.linear(rows, *product.joined()) if joint else product(rows)


def rate(module: nn.Dropout) -> float:
    """The probability with which a value becomes 0; 0.0 when not training."""
    return module.p if module.training else 0.0
