"""What all tokenizers share: blocks of texts, cutting, [CLS] and [SEP].

In: texts.
Out: the ids of all texts end to end, with offsets, [CLS] and [SEP] included.
Not supported: padding (batches have none), pairs of texts, a token's place in its text.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from storyflower.common.errors import InputError, one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

BLOCK = 65_536  # texts encoded at a time, to limit memory; larger blocks are no faster


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts, ragged."""

    ids: np.ndarray  # (total,) uint16, or int32 for a vocabulary over 65,536
    offsets: np.ndarray  # (n + 1,) int64: text i is ids[offsets[i]:offsets[i + 1]]
    cut: np.ndarray  # (n,) bool: the text was longer than max_len and lost its end


def ends(lengths: np.ndarray) -> np.ndarray:
    """Lengths (n,) → offsets (n + 1,) int64 of rows laid end to end."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


class Tokenizer:
    """Base class: the special ids, blocks of texts, cutting, [CLS] and [SEP]."""

    pretokenize: str
    cls_id: int
    sep_id: int
    pad_id: int
    unk_id: int  # -1: the model has no unknown token
    mask_id: int | None  # None: the vocabulary has no [MASK]
    vocab_size: int

    def encode(self, texts: Sequence[str], max_len: int) -> Tokens:
        """Encode n texts; each gets at most max_len ids, [CLS] and [SEP] included.

        Raises TypeError for anything but a sequence of str, ValueError for max_len < 2, and
        InputError for a text with a lone surrogate, which no file in UTF-8 can hold.
        """
        if max_len < 2:
            raise ValueError(f"max_len must be at least 2, for [CLS] and [SEP], got {max_len}")
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of str, got one str")
        for kind in set(map(type, texts)):
            if not issubclass(kind, str):
                row = [type(text) for text in texts].index(kind)
                raise TypeError(f"texts[{row}] must be str, got {kind.__name__}")
        try:
            blocks = [
                self._surround(*self._encode_block(texts[start : start + BLOCK]), max_len)
                for start in range(0, max(len(texts), 1), BLOCK)  # no texts: one block without any
            ]
        except Exception:  # the libraries agree on no type for half of a surrogate pair
            check_utf8(texts)
            raise
        ids, lengths, cut = map(np.concatenate, zip(*blocks, strict=True))
        return Tokens(ids, ends(lengths), cut)

    def _encode_block(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of n texts end to end, (total,), and lengths (n,); not cut, no [CLS] or [SEP]."""
        raise NotImplementedError

    def _surround(
        self, ids: np.ndarray, lengths: np.ndarray, max_len: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cut each text to max_len - 2 ids, add [CLS] and [SEP] → ids, lengths (n,), cut (n,)."""
        cut = lengths > max_len - 2
        if cut.any():
            position = np.arange(len(ids)) - np.repeat(ends(lengths)[:-1], lengths)
            ids = ids[position < max_len - 2]
        lengths = np.minimum(lengths, max_len - 2) + 2
        offsets = ends(lengths)
        inside = np.ones(offsets[-1], dtype=bool)
        inside[offsets[:-1]] = inside[offsets[1:] - 1] = False
        surrounded = np.empty(offsets[-1], dtype=self.ids_dtype)
        surrounded[offsets[:-1]] = self.cls_id
        surrounded[offsets[1:] - 1] = self.sep_id
        surrounded[inside] = ids
        return surrounded, lengths, cut

    @property
    def ids_dtype(self) -> np.dtype:
        """The smallest type that holds every id: uint16, or int32 for over 65,536 pieces."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.int32)

    def _ragged(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Lists of ids → ids end to end, (total,), and lengths, (rows,)."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.fromiter(chain.from_iterable(rows), self.ids_dtype, lengths.sum()), lengths


class BackendTokenizer(Tokenizer):
    """Base class of those that run in the tokenizers library."""

    _backend: "Backend"

    def _encode_block(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        try:
            rows = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises no narrower type
            raise InputError(f"the tokenizer cannot read a text: {one_line(error)}") from None
        return self._ragged([row.ids for row in rows])


def find_special(index: Mapping[str, int], tokens: Iterable[str], file: Path) -> list[int]:
    """Ids of the special tokens; raises InputError if the vocabulary lacks one."""
    for token in tokens:
        if token not in index:
            raise InputError(f"{file}: the vocabulary has no {token}")
    return [index[token] for token in tokens]


def token_names(document: object) -> dict[str, str]:
    """Which tokens a JSON object names: pad_token → [PAD], also of {"content": "[PAD]", …}."""
    items = document.items() if isinstance(document, Mapping) else ()
    tokens = ((key, row.get("content") if isinstance(row, Mapping) else row) for key, row in items)
    return {key: token for key, token in tokens if isinstance(token, str)}


def check_utf8(texts: Iterable[str]) -> None:
    """Raise InputError for the first text with a lone surrogate."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start]
            raise InputError(f"a text holds {half!a}, half of a surrogate pair") from None
