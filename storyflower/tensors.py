"""The token cache: every dialogue's ids, end to end, without padding.

Enters: ids as they are made. Leaves: a folder with three npy files a split, read back
memory-mapped: ids (total tokens,), offsets (dialogues + 1,)
and labels (dialogues,). Dialogue i is ids[offsets[i]:offsets[i + 1]], [CLS] and [SEP] included.
Given up: nothing. No batch is ever padded: its dialogues lie end to end too.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from storyflower.errors import InputError

if TYPE_CHECKING:
    import torch

NAMES = ("ids", "offsets", "labels")


@dataclass(frozen=True)
class TokenTable:
    """One split, ragged and memory-mapped."""

    ids: np.ndarray  # (tokens,) uint16, or int32 for a vocabulary over 65,536
    offsets: np.ndarray  # (dialogues + 1,) int64
    labels: np.ndarray  # (dialogues,) int64

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

    def batch(self, rows: np.ndarray) -> "Batch":
        """The given dialogues, sorted by length and laid end to end."""
        import torch  # not at the top: the tokenize stage writes the cache and needs no torch

        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        order = np.argsort(lengths, kind="stable")
        starts, lengths = starts[order], lengths[order]
        first = np.cumsum(lengths) - lengths
        text = np.repeat(np.arange(len(rows)), lengths)
        positions = np.arange(len(text)) - first[text]
        ids = self.ids[starts[text] + positions]
        widths, counts = np.unique(lengths, return_counts=True)
        return Batch(
            rows=rows[order],
            ids=torch.from_numpy(ids.astype(np.int64)),
            positions=torch.from_numpy(positions),
            text=torch.from_numpy(text),
            first=torch.from_numpy(first),
            lengths=torch.from_numpy(lengths),
            groups=list(zip(counts.tolist(), widths.tolist(), strict=True)),
            width=int(lengths[-1]),
        )


@dataclass(frozen=True)
class Batch:
    """Dialogues end to end, the shortest first; no padding."""

    rows: np.ndarray  # (dialogues,) which rows of the table these are, in this order
    ids: "torch.Tensor"  # (tokens,) int64
    positions: "torch.Tensor"  # (tokens,) int64: place of the token in its own dialogue, from 0
    text: "torch.Tensor"  # (tokens,) int64: which dialogue of the batch the token belongs to
    first: "torch.Tensor"  # (dialogues,) int64: where each dialogue's [CLS] lies
    lengths: "torch.Tensor"  # (dialogues,) int64: tokens of each
    groups: list[tuple[int, int]]  # (dialogues, tokens in each) of one length after the other
    width: int  # tokens of the longest

    def to(self, device: "torch.device") -> "Batch":
        """The same batch with its tensors on a device."""
        if device.type == "cpu":
            return self
        names = ("ids", "positions", "text", "first", "lengths")
        return replace(self, **{n: getattr(self, n).to(device, non_blocking=True) for n in names})


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
