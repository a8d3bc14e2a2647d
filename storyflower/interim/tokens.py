"""The token arrays: the ids of all dialogues, end to end, without padding.

In: ids, a batch of dialogues at a time.
Out: a folder with three npy files per split, read back memory-mapped: ids (tokens,), offsets
(dialogues + 1,) and labels (dialogues,). Dialogue i is ids[offsets[i]:offsets[i + 1]], [CLS] and
[SEP] included. made_by.json says by which files of the encoder's the ids were made.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from storyflower.common.errors import InputError, one_line
from storyflower.common.files import digests, json_text, read_json

if TYPE_CHECKING:
    import torch


NAMES = ("ids", "offsets", "labels")
MADE_BY = "made_by.json"
MODEL = ("config.json", "model.safetensors")  # of an encoder's folder; the rest is its tokenizer
# What is read beside a vocabulary: special tokens, added ones, whether to lower-case
SETTINGS = {
    "sentencepiece": (),
    "wordpiece": ("tokenizer_config.json", "added_tokens.json"),
    "tokenizer.json": ("tokenizer_config.json", "special_tokens_map.json"),
}


def tokenizer_files(encoder: Path) -> list[str]:
    """The names of the files in an encoder's folder that are not the model's, sorted."""
    files = (path.name for path in encoder.iterdir() if path.is_file())
    return sorted(name for name in files if name not in MODEL)


def note_tokenizer(folder: Path, encoder: Path) -> None:
    """Write beside token arrays by which tokenizer they were made."""
    text = json_text(digests(encoder, tokenizer_files(encoder)))
    (folder / MADE_BY).write_text(text, encoding="utf-8")


def check_tokenizer(folder: Path, other: Path) -> None:
    """Raise InputError unless `other`, an encoder's folder or a classifier's, has those files.

    Ids of another vocabulary would be read without a word, as other words.
    """
    files = read_json(folder / MADE_BY, missing={})
    if not (isinstance(files, dict) and files) or files != digests(other, files):
        raise InputError(
            f"{folder} was not made with the tokenizer and card of {other}; run 'dvc repro'"
        )


@dataclass(frozen=True)
class TokenArrays:
    """One split, ragged and memory-mapped."""

    ids: np.ndarray  # (tokens,) uint16, or int32 for a vocabulary over 65,536
    offsets: np.ndarray  # (dialogues + 1,) int64
    labels: np.ndarray  # (dialogues,) int64
    # Copies of `ids` on devices, cached here by model/batch.py
    resident: "dict[torch.device, torch.Tensor]" = field(default_factory=dict, compare=False)

    @classmethod
    def load(cls, folder: Path, split: str) -> "TokenArrays":
        """Map a split's files; raises InputError if one is missing, damaged or holds objects."""
        arrays = {}
        for name in NAMES:
            file = folder / f"{split}.{name}.npy"
            try:
                arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise InputError(
                    f"{file}: {one_line(error)}; make it again with 'dvc repro'"
                ) from None
        return cls(**arrays)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each dialogue, (dialogues,) int64."""
        return np.diff(self.offsets)


class TokenWriter:
    """Context manager that appends dialogues to one split of the token arrays."""

    def __init__(self, folder: Path, split: str, ids_dtype: np.dtype):
        folder.mkdir(parents=True, exist_ok=True)
        dtypes = (ids_dtype, np.int64, np.int64)
        self._files = {
            name: NpyWriter(folder / f"{split}.{name}.npy", dtype)
            for name, dtype in zip(NAMES, dtypes, strict=True)
        }
        self._files["offsets"].append(np.zeros(1, np.int64))

    def append(self, ids: np.ndarray, offsets: np.ndarray, labels: np.ndarray) -> None:
        """Append ids (tokens,), offsets (dialogues + 1,) that start at 0, labels (dialogues,)."""
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
        # numpy pads the header, so rewriting it with a longer shape needs no more space.
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def append(self, values: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        self.file.seek(0)
        self._header()
        self.file.close()
