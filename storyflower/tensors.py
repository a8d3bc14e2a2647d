"""The token cache: every dialogue's ids, end to end, without padding.

Enters: ids as they are made. Leaves: a folder with three npy files a split, read back
memory-mapped: ids (total tokens,), offsets (dialogues + 1,)
and labels (dialogues,). Dialogue i is ids[offsets[i]:offsets[i + 1]], [CLS] and [SEP] included.
Given up: nothing. No batch is ever padded: its dialogues lie end to end too.
"""

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from storyflower.errors import InputError

if TYPE_CHECKING:
    import torch

NAMES = ("ids", "offsets", "labels")
WIDTH_STEP = 64  # a batch is as wide as its longest text, up to a multiple of this


@dataclass(frozen=True)
class TokenTable:
    """One split, ragged and memory-mapped."""

    ids: np.ndarray  # (tokens,) uint16, or int32 for a vocabulary over 65,536
    offsets: np.ndarray  # (dialogues + 1,) int64
    labels: np.ndarray  # (dialogues,) int64
    _resident: "dict[torch.device, torch.Tensor]" = field(default_factory=dict, compare=False)

    @classmethod
    def load(cls, folder: Path, split: str) -> "TokenTable":
        """Raises InputError for a file that is missing, damaged, or holds objects."""
        arrays = {}
        for name in NAMES:
            file = folder / f"{split}.{name}.npy"
            try:
                arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                reason = " ".join(str(error).split())[:200]
                raise InputError(f"{file}: {reason}; make it again with 'dvc repro'") from None
        return cls(**arrays)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each dialogue, (dialogues,) int64."""
        return np.diff(self.offsets)

    def batch(
        self,
        rows: np.ndarray,
        device: "torch.device | str" = "cpu",
        token_step: int | None = None,
    ) -> "Batch":
        """The given dialogues, sorted by length and laid end to end, on a device.

        Texts that nobody reads fill it up to a multiple of `token_step` tokens, so that there are
        few shapes of batches: a CUDA graph is of one shape, and on a CPU the matrix library
        prepares itself anew for each. They lie behind the dialogues. Without a value: 256 on CUDA,
        elsewhere at most a 32nd of the batch.
        """
        import torch  # not at the top: the tokenize stage writes the cache and needs no torch

        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        order = np.argsort(lengths, kind="stable")
        starts, lengths = starts[order], lengths[order]
        width = -(-int(lengths[-1]) // WIDTH_STEP) * WIDTH_STEP
        if token_step is None:
            share = int(lengths.sum()) // 32
            token_step = (
                256 if torch.device(device).type == "cuda" else 1 << share.bit_length() >> 1
            )
        if token_step:
            filling = fill(-int(lengths.sum()) % token_step, width, token_step)
            lengths = np.concatenate([lengths, filling])
            starts = np.concatenate([starts, np.zeros(len(filling), np.int64)])
        total = int(lengths.sum())
        labels = np.zeros(len(lengths), np.int64)
        labels[: len(rows)] = self.labels[rows[order]]
        small = np.stack([starts, lengths, np.cumsum(lengths) - lengths, labels])
        # Four numbers a dialogue travel to the device, in one copy that does not wait for the
        # step before; all else is made there.
        numbers = torch.from_numpy(small)
        if torch.device(device).type == "cuda":
            numbers = numbers.pin_memory()  # a copy from other memory may wait for the stream
        starts_, lengths_, first, labels_ = numbers.to(device, non_blocking=True)
        texts = torch.arange(len(lengths), device=device)
        text = torch.repeat_interleave(texts, lengths_, output_size=total)
        positions = torch.arange(total, device=device) - first[text]
        return Batch(
            rows=rows[order],
            ids=self._ids_at(starts_[text] + positions),
            positions=positions,
            text=text,
            first=first[: len(rows)],
            labels=labels_[: len(rows)],
            lengths=lengths_,
            groups=[(len(list(same)), n) for n, same in groupby(lengths.tolist()) if n],
            width=width,
        )

    def _ids_at(self, places: "torch.Tensor") -> "torch.Tensor":
        """The ids at these places, int64, on the places' device; all ids go there once."""
        import torch

        places = places.clamp(max=len(self.ids) - 1)  # a filling may be longer than the table
        if places.device.type == "cpu":  # the memory map: a corpus may be larger than memory
            return torch.from_numpy(self.ids[places.numpy()].astype(np.int64))
        if places.device not in self._resident:
            ids = torch.from_numpy(self.ids.astype(np.int32)).to(places.device)
            self._resident[places.device] = ids
        return self._resident[places.device][places].long()


def fill(tokens: int, width: int, most: int) -> np.ndarray:
    """Lengths of texts of at most `width` tokens, `tokens` in all; as many texts as `most` need."""
    texts = -(-most // width)
    return np.clip(tokens - width * np.arange(texts), 0, width)


@dataclass(frozen=True)
class Batch:
    """Dialogues end to end, the shortest first; no padding."""

    rows: np.ndarray  # (dialogues,) which rows of the table these are, in this order
    ids: "torch.Tensor"  # (tokens,) int64
    positions: "torch.Tensor"  # (tokens,) int64: place of the token in its own text, from 0
    text: "torch.Tensor"  # (tokens,) int64: which text of the batch the token belongs to
    first: "torch.Tensor"  # (dialogues,) int64: where each dialogue's [CLS] lies
    labels: "torch.Tensor"  # (dialogues,) int64
    lengths: "torch.Tensor"  # (texts,) int64: tokens of each; texts that fill up come last
    groups: list[tuple[int, int]]  # (texts, tokens in each) of one length after the other
    width: int  # no text has more tokens

    @property
    def tensors(self) -> "tuple[torch.Tensor, ...]":
        """All tensors; two batches for which their shapes and width agree do the same work."""
        return self.ids, self.positions, self.text, self.first, self.labels, self.lengths


class TokenWriter:
    """Appends dialogues to one split of the cache; a context manager."""

    def __init__(self, folder: Path, split: str, ids_dtype: np.dtype):
        folder.mkdir(parents=True, exist_ok=True)
        dtypes = (ids_dtype, np.int64, np.int64)
        self._files = {
            name: NpyWriter(folder / f"{split}.{name}.npy", dtype)
            for name, dtype in zip(NAMES, dtypes, strict=True)
        }
        self._files["offsets"].append(np.zeros(1, np.int64))

    def append(self, ids: np.ndarray, offsets: np.ndarray, labels: np.ndarray) -> None:
        """ids (tokens,), offsets (dialogues + 1,) from 0, labels (dialogues,)."""
        self._files["offsets"].append(offsets[1:] + self._files["ids"].length)
        self._files["ids"].append(ids)
        self._files["labels"].append(labels)

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()


class NpyWriter:
    """Appends to a one-dimensional npy file whose length is known only at the end."""

    def __init__(self, path: Path, dtype: np.dtype):
        self.dtype = np.dtype(dtype)
        self.length = 0
        self.file = path.open("wb")
        self._header()

    def _header(self) -> None:
        # numpy pads the header so that a longer shape takes no more room.
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def append(self, values: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        self.file.seek(0)
        self._header()
        self.file.close()
