"""Attention without padding: the texts of a batch lie end to end.

In: the queries, keys and values of all tokens of a batch in one tensor, (tokens, 3 * hidden).
Out: each token's attention over its own text, (tokens, hidden). On a CPU, texts of the same length
form one rectangle: a batch takes a few dense products, without masks or padding. On a GPU, where
kernel launches cost more than arithmetic, all texts go into one rectangle as wide as the batch,
with a mask. Only this product, 3% of the work, has padding.
Not supported: one kernel for the whole batch on the CPU; a batch of 64 has about 30 different
lengths.
"""

from itertools import islice

import torch
from torch.nn import functional

from storyflower.model.batch import Batch
from storyflower.model.dropout import scale_mask


def attend(qkv: torch.Tensor, batch: Batch, heads: int, dropout: float) -> torch.Tensor:
    """Attention within each text: (tokens, 3 * hidden) → (tokens, hidden).

    `dropout` is the probability with which an attention weight becomes 0.
    """
    if qkv.device.type == "cpu":
        return GroupedAttention.apply(qkv, batch.groups, heads, dropout)
    return attend_rectangle(qkv, batch, heads, dropout)


def attend_rectangle(qkv: torch.Tensor, batch: Batch, heads: int, dropout: float) -> torch.Tensor:
    """As attend, with one masked product; torch's GPU kernels for it include dropout."""
    texts, width = len(batch.lengths), batch.width
    slots = batch.text * width + batch.positions  # (tokens,): place of each token in the rectangle
    rectangle = qkv.new_zeros(texts * width, qkv.shape[1]).index_copy(0, slots, qkv)
    query, key, value = rectangle.view(texts, width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    columns = torch.arange(width, device=qkv.device)
    # An empty text attends to one zero token: a fully masked row would be 0 / 0.
    seen = columns < batch.lengths.clamp(min=1).unsqueeze(1)  # (texts, width)
    result = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen[:, None, None, :], dropout_p=dropout
    )
    return result.transpose(1, 2).reshape(texts * width, -1).index_select(0, slots)


class GroupedAttention(torch.autograd.Function):
    """One dense product for all texts of the same length, with a hand-written backward pass.

    torch's scaled_dot_product_attention has no CPU kernel with dropout. It falls back to a dozen
    small operations per group, each recorded for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        qkv: torch.Tensor,
        groups: list[tuple[int, int]],
        heads: int,
        dropout: float,
    ) -> torch.Tensor:
        tokens, size = len(qkv), qkv.shape[1] // (3 * heads)
        result = torch.empty(tokens, heads, size, dtype=qkv.dtype)
        saved: list[torch.Tensor | None] = []
        start = 0
        with torch.autocast("cpu", enabled=False):
            for texts, length in groups:
                stop = start + texts * length
                group = qkv[start:stop].view(texts, length, 3, heads, size)
                # each (texts * heads, length, size)
                query, key, value = group.permute(2, 0, 3, 1, 4).reshape(3, -1, length, size)
                scores = torch.bmm(query, key.transpose(1, 2)).mul_(size**-0.5)
                weights = torch.softmax(scores, dim=-1)  # (texts * heads, length, length)
                mask = scale_mask(weights.shape, dropout, weights.dtype) if dropout else None
                dropped = weights if mask is None else weights * mask
                mixed = torch.bmm(dropped, value).view(texts, heads, length, size)
                result[start:stop].view(texts, length, heads, size).copy_(mixed.transpose(1, 2))
                if qkv.requires_grad:
                    saved += [query, key, value, weights, mask, dropped]
                start = stop
        ctx.groups, ctx.size = groups, size
        ctx.save_for_backward(*saved)
        return result.flatten(1)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        tokens, size = len(gradient), ctx.size
        heads = gradient.shape[1] // size
        gradient = gradient.reshape(tokens, heads, size)
        result = torch.empty(tokens, 3, heads, size, dtype=gradient.dtype)
        start = 0
        saved = iter(ctx.saved_tensors)
        for texts, length in ctx.groups:
            query, key, value, weights, mask, dropped = islice(saved, 6)
            stop = start + texts * length
            mixed = gradient[start:stop].view(texts, length, heads, size)
            mixed = mixed.transpose(1, 2).reshape(-1, length, size)
            by_weight = torch.bmm(mixed, value.transpose(1, 2))
            if mask is not None:
                by_weight.mul_(mask)
            # The softmax's derivative: w * (g - sum(w * g))
            by_score = torch._softmax_backward_data(by_weight, weights, -1, weights.dtype)
            by_score.mul_(size**-0.5)
            parts = gradient.new_empty(3, texts * heads, length, size)
            torch.bmm(by_score, key, out=parts[0])
            torch.bmm(by_score.transpose(1, 2), query, out=parts[1])
            torch.bmm(dropped.transpose(1, 2), mixed, out=parts[2])
            whole = parts.view(3, texts, heads, length, size).permute(1, 3, 0, 2, 4)
            result[start:stop].view(texts, length, 3, heads, size).copy_(whole)
            start = stop
        return result.view(tokens, -1), None, None, None
