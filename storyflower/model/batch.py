"""Dialogues of the token arrays → one batch on a device, without padding.

In: the token arrays of one split and the numbers of some rows.
Out: a Batch: the rows' tokens end to end, sorted by length, and where each text lies, for the
forward pass.
Not supported: padded batches.
"""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from storyflower.interim.tokens import TokenArrays

WIDTH_STEP = 64  # a batch's width is its longest text, rounded up to a multiple of this


@dataclass(frozen=True)
class Batch:
    """Dialogues end to end, the shortest first; no padding."""

    rows: np.ndarray  # (dialogues,) row numbers in the token arrays, in the batch's order
    ids: torch.Tensor  # (tokens,) int64
    positions: torch.Tensor  # (tokens,) int64: place of the token in its own text, from 0
    text: torch.Tensor  # (tokens,) int64: which text of the batch the token belongs to
    first: torch.Tensor  # (dialogues,) int64: index of each dialogue's [CLS]
    labels: torch.Tensor  # (dialogues,) int64
    lengths: torch.Tensor  # (texts,) int64: tokens in each text; filler texts come last
    groups: list[tuple[int, int]]  # runs of texts of equal length: (texts, tokens in each)
    width: int  # no text has more tokens

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All tensors. Batches with the same shapes and width can share a CUDA graph."""
        return self.ids, self.positions, self.text, self.first, self.labels, self.lengths


def make_batch(
    tokens: TokenArrays,
    rows: np.ndarray,
    device: torch.device | str = "cpu",
    token_step: int | None = None,
) -> Batch:
    """The given dialogues, sorted by length and laid end to end, on a device.

    Filler texts behind the dialogues, whose results are ignored, round the batch up to a multiple
    of `token_step` tokens, so that batches have few shapes: a CUDA graph has one fixed shape, and
    on a CPU the matrix library has setup work for each new shape. The default is 256 on CUDA,
    elsewhere a power of two of at most 1/32 of the batch.
    """
    starts = tokens.offsets[rows]
    lengths = tokens.offsets[rows + 1] - starts
    order = np.argsort(lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    width = -(-int(lengths[-1]) // WIDTH_STEP) * WIDTH_STEP
    if token_step is None:
        share = int(lengths.sum()) // 32
        token_step = 256 if torch.device(device).type == "cuda" else 1 << share.bit_length() >> 1
    if token_step:
        filling = fill(-int(lengths.sum()) % token_step, width, token_step)
        lengths = np.concatenate([lengths, filling])
        starts = np.concatenate([starts, np.zeros(len(filling), np.int64)])
    total = int(lengths.sum())
    labels = np.zeros(len(lengths), np.int64)
    labels[: len(rows)] = tokens.labels[rows[order]]
    small = np.stack([starts, lengths, np.cumsum(lengths) - lengths, labels])
    # Only four numbers per text are copied to the device, in one copy that does not wait for the
    # previous step. Everything else is computed on the device.
    numbers = torch.from_numpy(small)
    if torch.device(device).type == "cuda":
        numbers = numbers.pin_memory()  # a copy from unpinned memory may wait for the stream
    starts_, lengths_, first, labels_ = numbers.to(device, non_blocking=True)
    texts = torch.arange(len(lengths), device=device)
    text = torch.repeat_interleave(texts, lengths_, output_size=total)
    positions = torch.arange(total, device=device) - first[text]
    return Batch(
        rows=rows[order],
        ids=gather_ids(tokens, starts_[text] + positions),
        positions=positions,
        text=text,
        first=first[: len(rows)],
        labels=labels_[: len(rows)],
        lengths=lengths_,
        groups=[(len(list(same)), n) for n, same in groupby(lengths.tolist()) if n],
        width=width,
    )


def fill(tokens: int, width: int, most: int) -> np.ndarray:
    """Lengths of filler texts: `tokens` in total, each at most `width`.

    Returns as many lengths as `most` tokens need, some of them 0, so that the count is fixed.
    """
    texts = -(-most // width)
    return np.clip(tokens - width * np.arange(texts), 0, width)


def gather_ids(tokens: TokenArrays, indices: torch.Tensor) -> torch.Tensor:
    """The ids at these indices, int64, on the same device; a GPU gets one copy of all ids."""
    indices = indices.clamp(max=len(tokens.ids) - 1)  # a filler text may be longer than the split
    if indices.device.type == "cpu":  # read from the memory map: a corpus may not fit in memory
        return torch.from_numpy(tokens.ids[indices.numpy()].astype(np.int64))
    if indices.device not in tokens.resident:
        ids = torch.from_numpy(tokens.ids.astype(np.int32)).to(indices.device)
        tokens.resident[indices.device] = ids
    return tokens.resident[indices.device][indices].long()
