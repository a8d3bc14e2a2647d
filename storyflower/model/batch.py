"""Dialogues of the token arrays → one batch on a device, without padding.

In: the token arrays of one split and the numbers of some rows.
Out: a Batch: the rows' tokens end to end, sorted by length, and what the forward pass must know
of where each text lies.
Not supported: padded batches.
"""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from storyflower.interim.tokens import TokenArrays

WIDTH_STEP = 64  # a batch is as wide as its longest text, up to a multiple of this


@dataclass(frozen=True)
class Batch:
    """Dialogues end to end, the shortest first; no padding."""

    rows: np.ndarray  # (dialogues,) which rows of the arrays these are, in this order
    ids: torch.Tensor  # (tokens,) int64
    positions: torch.Tensor  # (tokens,) int64: place of the token in its own text, from 0
    text: torch.Tensor  # (tokens,) int64: which text of the batch the token belongs to
    first: torch.Tensor  # (dialogues,) int64: where each dialogue's [CLS] lies
    labels: torch.Tensor  # (dialogues,) int64
    lengths: torch.Tensor  # (texts,) int64: tokens of each; texts that fill up come last
    groups: list[tuple[int, int]]  # (texts, tokens in each) of one length after the other
    width: int  # no text has more tokens

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All tensors; two batches for which their shapes and width agree do the same work."""
        return self.ids, self.positions, self.text, self.first, self.labels, self.lengths


def make_batch(
    tokens: TokenArrays,
    rows: np.ndarray,
    device: torch.device | str = "cpu",
    token_step: int | None = None,
) -> Batch:
    """The given dialogues, sorted by length and laid end to end, on a device.

    Texts that nobody reads fill it up to a multiple of `token_step` tokens, so that there are few
    shapes of batches: a CUDA graph is of one shape, and on a CPU the matrix library prepares itself
    anew for each. They lie behind the dialogues. Without a value: 256 on CUDA, elsewhere at most a
    32nd of the batch.
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
    # Four numbers a dialogue travel to the device, in one copy that does not wait for the step
    # before; all else is made there.
    numbers = torch.from_numpy(small)
    if torch.device(device).type == "cuda":
        numbers = numbers.pin_memory()  # a copy from other memory may wait for the stream
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
    """Lengths of texts of at most `width` tokens, `tokens` in all; as many texts as `most` need."""
    texts = -(-most // width)
    return np.clip(tokens - width * np.arange(texts), 0, width)


def gather_ids(tokens: TokenArrays, indices: torch.Tensor) -> torch.Tensor:
    """The ids at these indices, int64, on the indices' device; all ids are copied there once."""
    indices = indices.clamp(max=len(tokens.ids) - 1)  # a filling may be longer than the split
    if indices.device.type == "cpu":  # the memory map: a corpus may be larger than memory
        return torch.from_numpy(tokens.ids[indices.numpy()].astype(np.int64))
    if indices.device not in tokens.resident:
        ids = torch.from_numpy(tokens.ids.astype(np.int32)).to(indices.device)
        tokens.resident[indices.device] = ids
    return tokens.resident[indices.device][indices].long()
