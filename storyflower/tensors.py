"""The token cache: every dialogue's ids, end to end, without padding.

Enters: ids as they are made. Leaves: a folder with three npy files a split, read back
memory-mapped: ids (total tokens,), offsets (dialogues + 1,)
and labels (dialogues,). Dialogue i is ids[offsets[i]:offsets[i + 1]], [CLS] and [SEP] included.
Given up: nothing; padding is made per batch, to the longest dialogue in it, where it is needed.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

NAMES = ("ids", "offsets", "labels")


@dataclass(frozen=True)
class TokenTable:
    """One split, ragged and memory-mapped."""

    ids: np.ndarray  # (tokens,) uint16, or int32 for a vocabulary over 65,536
    offsets: np.ndarray  # (dialogues + 1,) int64
    labels: np.ndarray  # (dialogues,) int64

    @classmethod
    def load(cls, folder: Path, split: str) -> "TokenTable":
        arrays = {
            name: np.load(folder / f"{split}.{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in NAMES
        }
        return cls(**arrays)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each dialogue, (dialogues,) int64."""
        return np.diff(self.offsets)

    def padded(self, rows: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The given dialogues padded to the longest of them.

        Returns ids int64 (batch, longest) and a bool mask of the same shape, true on real tokens.
        """
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        mask = np.arange(lengths.max()) < lengths[:, None]  # (batch, longest)
        ids = np.full(mask.shape, pad_id, dtype=np.int64)
        ids[mask] = np.concatenate(
            [self.ids[a : a + n] for a, n in zip(starts, lengths, strict=True)]
        )
        return ids, mask


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
