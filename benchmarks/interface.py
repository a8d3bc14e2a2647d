"""Attention without padding: the texts of a batch lie end to end.

Enters: queries, keys and values of all tokens of a batch, (1, heads, tokens, head size), texts
sorted by length. Leaves: each token's attention over its own text. Texts of one length are one
rectangle, so a batch is a few dense products, and neither a mask nor a pad exists. transformers
calls it by name (AttentionInterface), so every encoder family keeps its own code. Given up: one
kernel for the whole batch; a batch of 64 has about 30 different lengths.
"""

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "storyflower_packed"


def register() -> str:
    """Make the function known to transformers; returns the name for attn_implementation."""
    AttentionInterface.register(NAME, packed_attention)
    # No mask: nothing that must not be seen is there.
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    return NAME


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    groups: list[tuple[int, int]],
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention within each text; returns (1, tokens, heads, head size).

    query, key and value are (1, heads, tokens, head size). `groups` lists (texts, tokens a text) in
    the order in which they lie.
    """
    results = []
    start = 0
    for count, length in groups:
        stop = start + count * length
        q, k, v = (
            # (texts, heads, length, head size), a view
            x[0, :, start:stop].unflatten(1, (count, length)).transpose(0, 1)
            for x in (query, key, value)
        )
        result = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        results.append(result.transpose(1, 2).flatten(0, 1))  # (count * length, heads, head size)
        start = stop
    return torch.cat(results).unsqueeze(0), None
