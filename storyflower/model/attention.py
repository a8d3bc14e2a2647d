"""Attention without padding: the texts of a batch lie end to end.

In: the queries, keys and values of all tokens of a batch in one tensor, (tokens, 3 * hidden).
Out: each token's attention over its own text, (tokens, hidden). On a CPU, texts of the same length
form one rectangle: a batch takes a few dense products, without masks or padding. In bfloat16, texts
whose lengths round up to the same multiple of 16 form one, with pads that are masked, and torch's
own kernel computes it where no gradient is asked for. On a GPU, where kernel launches cost more
than arithmetic, all texts go into one rectangle as wide as the batch, with a mask. Only this
product, 3% of the work, has padding.
Not supported: one kernel for the whole batch on the CPU; a batch of 64 has about 30 different
lengths.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch.nn import functional

from storyflower.model.batch import Batch
from storyflower.model.dropout import scale_masks

# bfloat16's products are fast where one of many small ones mostly waits for its call: five groups
# in the place of 35. In float32, a pad costs more than the call.
GROUP_STEP = {torch.bfloat16: 16}

# Queries, keys and values, (tokens, 3 * hidden), and the probability with which an attention weight
# becomes 0 → each token's attention over its own text, (tokens, hidden)
Attention = Callable[[torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """Where each head of each token lies while attention is computed on a CPU.

    A slot is one head of one token, or of a pad. The slots of a text are those of its first head,
    its second, and so on; texts of one width form a group, a rectangle of (texts * heads, width).
    """

    heads: int
    groups: list[tuple[int, int]]  # (texts * heads, width), in the order of the slots
    from_qkv: torch.Tensor  # (3 * slots,) int64: rows of (tokens * 3 * heads); q, then k, then v
    from_result: torch.Tensor  # (slots,) int64: rows of (tokens * heads)
    to_qkv: torch.Tensor  # (tokens * 3 * heads,) int64: of 3 * slots
    to_result: torch.Tensor  # (tokens * heads,) int64: of the slots
    pads: torch.Tensor  # (pads,) int64: slots without a token; they read the batch's first one
    masks: list[torch.Tensor | None]  # of each group, (texts * heads, 1, width): 0, at pads -inf


def lay_out(batch: Batch, heads: int, dtype: torch.dtype) -> Layout:
    """The layout of a batch whose attention is computed in `dtype`."""
    step = GROUP_STEP.get(dtype, 1)
    lengths = np.repeat([n for _, n in batch.groups], [texts for texts, _ in batch.groups])
    widths = -(-lengths // step) * step  # (texts,)
    text = np.repeat(np.arange(len(lengths)), heads * widths)  # (slots,)
    inside = np.arange(len(text)) - (np.cumsum(heads * widths) - heads * widths)[text]
    head, column = np.divmod(inside, widths[text])
    real = column < lengths[text]
    token = np.where(real, (np.cumsum(lengths) - lengths)[text] + column, 0)
    from_result = token * heads + head
    to_result = np.empty(int(lengths.sum()) * heads, np.int64)
    to_result[from_result[real]] = np.flatnonzero(real)
    parts = np.arange(3)
    from_qkv = (token * 3 * heads + head) + parts[:, None] * heads
    to_qkv = to_result.reshape(-1, 1, heads) + parts[:, None] * len(text)
    groups, masks = [], []
    for width, same in groupby(range(len(widths)), widths.tolist().__getitem__):
        mine = lengths[list(same)]
        groups.append((len(mine) * heads, width))
        masks.append(None if mine.min() == width else mask_pads(mine, width, heads, dtype))
    numbers = (from_qkv.ravel(), from_result, to_qkv.ravel(), to_result, np.flatnonzero(~real))
    return Layout(heads, groups, *map(torch.from_numpy, numbers), masks)


def mask_pads(lengths: np.ndarray, width: int, heads: int, dtype: torch.dtype) -> torch.Tensor:
    """(texts * heads, 1, width): 0, and -inf behind each of these lengths."""
    behind = torch.from_numpy(np.arange(width) >= lengths[:, None])  # (texts, width)
    mask = torch.zeros(behind.shape, dtype=dtype).masked_fill_(behind, -torch.inf)
    return mask.repeat_interleave(heads, dim=0).unsqueeze(1)


def make_attention(batch: Batch, heads: int, dtype: torch.dtype) -> Attention:
    """Attention within each text of a batch, computed in `dtype`; the same for all layers."""
    if batch.ids.device.type != "cpu":
        return in_rectangle(batch, heads)
    layout = lay_out(batch, heads, dtype)
    if dtype == torch.bfloat16 and not torch.is_grad_enabled():
        return lambda qkv, _: in_one_kernel(qkv, layout)
    return lambda qkv, dropout: GroupedAttention.apply(qkv, layout, dropout)


def in_one_kernel(qkv: torch.Tensor, layout: Layout) -> torch.Tensor:
    """As GroupedAttention without dropout and gradients, by torch's kernel for each group.

    In float32 it would gain little, and change the last bits of earlier results.
    """
    size = qkv.shape[1] // (3 * layout.heads)
    rows = qkv.reshape(-1, size).index_select(0, layout.from_qkv)  # (3 * slots, size)
    result = rows.new_empty(len(layout.from_result), size)
    parts = zip(by_group(rows, layout), by_group(result, layout), strict=True)
    for (qkv_of_group, (mixed,)), mask in zip(parts, layout.masks, strict=True):
        one = functional.scaled_dot_product_attention(
            *(part.unsqueeze(0) for part in qkv_of_group),
            attn_mask=None if mask is None else mask.unsqueeze(0),  # three dimensions are slow
        )
        mixed.copy_(one[0])
    return result.index_select(0, layout.to_result).view(len(qkv), -1)


def in_rectangle(batch: Batch, heads: int) -> Attention:
    """As make_attention, with one masked product; torch's GPU kernels for it include dropout."""
    texts, width = len(batch.lengths), batch.width
    slots = batch.text * width + batch.positions  # (tokens,): place of each token in the rectangle
    columns = torch.arange(width, device=slots.device)
    # An empty text attends to one zero token: a fully masked row would be 0 / 0.
    seen = columns < batch.lengths.clamp(min=1).unsqueeze(1)  # (texts, width)

    def attend(qkv: torch.Tensor, dropout: float) -> torch.Tensor:
        rectangle = qkv.new_zeros(texts * width, qkv.shape[1]).index_copy(0, slots, qkv)
        query, key, value = rectangle.view(texts, width, 3, heads, -1).permute(2, 0, 3, 1, 4)
        result = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen[:, None, None, :], dropout_p=dropout
        )
        return result.transpose(1, 2).reshape(texts * width, -1).index_select(0, slots)

    return attend


class GroupedAttention(torch.autograd.Function):
    """One dense product for all texts of the same width, with a hand-written backward pass.

    torch's scaled_dot_product_attention has no CPU kernel with dropout. It falls back to a dozen
    small operations per group, each recorded for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        qkv: torch.Tensor,
        layout: Layout,
        dropout: float,
    ) -> torch.Tensor:
        size = qkv.shape[1] // (3 * layout.heads)
        rows = qkv.reshape(-1, size).index_select(0, layout.from_qkv)  # (3 * slots, size)
        result = rows.new_empty(len(layout.from_result), size)
        dropped: list[torch.Tensor | None] = [None] * len(layout.groups)
        if dropout:
            squares = [torch.Size([texts, width, width]) for texts, width in layout.groups]
            dropped = scale_masks(squares, dropout, qkv.dtype)
        saved: list[torch.Tensor | None] = []
        with torch.autocast("cpu", enabled=False):
            parts = zip(by_group(rows, layout), by_group(result, layout), strict=True)
            for ((query, key, value), (mixed,)), mask, drop in zip(
                parts, layout.masks, dropped, strict=True
            ):
                if mask is None:
                    scores = torch.bmm(query, key.transpose(1, 2)).mul_(size**-0.5)
                else:
                    scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=size**-0.5)
                weights = torch.softmax(scores, dim=-1)  # (texts * heads, width, width)
                left = weights if drop is None else weights * drop
                torch.bmm(left, value, out=mixed)
                if qkv.requires_grad:
                    saved += [weights, drop, left]
        ctx.layout = layout
        ctx.save_for_backward(rows, *saved)
        return result.index_select(0, layout.to_result).view(len(qkv), -1)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        layout: Layout = ctx.layout
        rows, *saved = ctx.saved_tensors
        size = rows.shape[1]
        by_result = gradient.reshape(-1, size).index_select(0, layout.from_result)
        by_result.index_fill_(0, layout.pads, 0)
        by_rows = torch.empty_like(rows)
        parts = zip(
            *(by_group(tensor, layout) for tensor in (rows, by_result, by_rows)), strict=True
        )
        for index, ((query, key, value), (mixed,), by) in enumerate(parts):
            weights, drop, left = saved[3 * index : 3 * index + 3]
            by_weight = torch.bmm(mixed, value.transpose(1, 2))
            if drop is not None:
                by_weight.mul_(drop)
            # The softmax's derivative: w * (g - sum(w * g))
            by_score = torch._softmax_backward_data(by_weight, weights, -1, weights.dtype)
            by_score.mul_(size**-0.5)
            torch.bmm(by_score, key, out=by[0])
            torch.bmm(by_score.transpose(1, 2), query, out=by[1])
            torch.bmm(left.transpose(1, 2), mixed, out=by[2])
        return by_rows.index_select(0, layout.to_qkv).view(len(gradient), -1), None, None


def by_group(rows: torch.Tensor, layout: Layout) -> Iterator[tuple[torch.Tensor, ...]]:
    """(parts * slots, size) → for each group its parts, views (texts * heads, width, size)."""
    parts = rows.view(-1, len(layout.from_result), rows.shape[1])
    start = 0
    for texts, width in layout.groups:
        stop = start + texts * width
        yield tuple(part[start:stop].view(texts, width, -1) for part in parts)
        start = stop
