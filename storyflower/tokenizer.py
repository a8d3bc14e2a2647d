"""Text → token ids, exactly as the original stack made them.

Enters: texts, and an encoder's vocabulary (spiece.model or vocab.txt). Leaves: every text's ids end
to end with offsets, [CLS] and [SEP] included. Given up: padding (a batch pads itself), pairs of
texts, and where in the text a token came from.

The original notebook did not run SentencePiece on the text. gluonnlp 0.10's BERTSPTokenizer cuts it
into words with BERT's basic tokenizer and runs SentencePiece on each word alone, which gives other
ids for most texts. Words repeat, so encoding each distinct word once gives the same ids sooner.

The ids are the original's with sentencepiece 0.1.98 to 0.2.1. From 0.2.2 on, SentencePiece breaks
ties between segmentations the other way: about one text in 1,600, mostly long runs of one letter.
"""

import json
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storyflower.errors import InputError

PRETOKENIZE = ("bert", "none")
BLOCK = 65_536  # texts encoded at a time, which bounds the memory; more is no faster

# The Han ideographs that BERT sets apart: unified, extensions A to E, compatibility.
HAN = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
# str.split takes these for blanks. BERT drops them as control characters and joins what is around.
FALSE_BLANKS = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts, ragged."""

    ids: np.ndarray  # (total,) uint16, or int32 for a vocabulary over 65,536; text after text
    offsets: np.ndarray  # (n + 1,) int64: text i is ids[offsets[i]:offsets[i + 1]]
    cut: np.ndarray  # (n,) bool: the text was longer than max_len and lost its end


class Spacing(dict):
    """For str.translate: drops control and format characters, puts blanks around Han and marks.

    Filled as characters are met: at most one entry a code point.
    """

    def __missing__(self, code: int) -> int | str:
        char = chr(code)
        new: int | str = code
        if char in "\t\n\r":  # blanks to BERT, though Unicode's category is control
            pass
        elif char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cf"):
            new = ""
        elif is_punctuation(char) or any(first <= code <= last for first, last in HAN):
            new = f" {char} "
        self[code] = new
        return new


class Stripping(dict):
    """For str.translate after NFD: drops non-spacing marks, puts blanks around punctuation.

    Decomposing can uncover punctuation: U+2260, the sign "not equal", is "=" and a mark.
    """

    def __missing__(self, code: int) -> int | str:
        char = chr(code)
        new: int | str = code
        if unicodedata.category(char) == "Mn":
            new = ""
        elif is_punctuation(char):
            new = f" {char} "
        self[code] = new
        return new


SPACING, STRIPPING = Spacing(), Stripping()


def is_punctuation(char: str) -> bool:
    """Unicode's punctuation, and every ASCII mark: also $ + < = > ^ ` | and ~."""
    return char in string.punctuation or unicodedata.category(char).startswith("P")


def basic_clean(text: str) -> str:
    """The text with its words, as BERT's basic tokenizer sees them, between blanks.

    Source: gluonnlp 0.10, BERTBasicTokenizer(lower=False). That release decomposes (NFD) and drops
    accents without lower-casing too, unlike Google's and Hugging Face's.
    """
    return unicodedata.normalize("NFD", text.translate(SPACING)).translate(STRIPPING)


def basic_tokenize(text: str) -> list[str]:
    """Cut a text into words, decomposed (NFD), as gluonnlp's BERTBasicTokenizer does."""
    return basic_clean(text).split()


def rough_words(texts: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Cut n texts at ASCII's blanks and marks.

    Returns the distinct words, the place of each word of each text among them, (words,), and the
    (n + 1) ends of the texts among those. basic_tokenize cuts there too, and what is left and right
    of such a cut never meets, so that it can do the rest on each distinct word alone. Cutting,
    counting and finding the distinct words is pyarrow's work: a loop here would cost most of all.
    """
    lines = "\n".join([text.replace("\n", " ") for text in texts])
    for char in FALSE_BLANKS:
        lines = lines.replace(char, "")
    for char in string.punctuation:
        lines = lines.replace(char, f" {char} ")
    # Trimmed first: the split would give an empty word at an end with blanks.
    trimmed = pc.ascii_trim_whitespace(pa.array(lines.split("\n") if texts else [], pa.string()))
    split = pc.ascii_split_whitespace(trimmed)
    words = split.values.dictionary_encode()
    return words.dictionary.to_pylist(), words.indices.to_numpy(), split.offsets.to_numpy()


def split_lines(lines: str) -> tuple[list[str], list[int]]:
    """All words of all lines, and (lines + 1) ends of the lines among them."""
    words: list[str] = []
    until = [0]
    for line in lines.split("\n"):
        words += line.split()
        until.append(len(words))
    return words, until


def ends(lengths: np.ndarray) -> np.ndarray:
    """Lengths (n,) → offsets (n + 1,) int64 of rows laid end to end."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


class Tokenizer:
    """What every vocabulary shares: the special ids, blocks of texts, cutting, [CLS] and [SEP]."""

    pretokenize: str
    cls_id: int
    sep_id: int
    pad_id: int
    unk_id: int
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
        ids, lengths, cut = [], [], []
        for start in range(0, len(texts), BLOCK):
            block = self._surround(*self._encode_block(texts[start : start + BLOCK]), max_len)
            for collected, part in zip((ids, lengths, cut), block, strict=True):
                collected.append(part)
        empty = np.empty(0, dtype=self.ids_dtype)
        return Tokens(
            np.concatenate([empty, *ids]),
            ends(np.concatenate([empty, *lengths])),
            np.concatenate([empty.astype(bool), *cut]),
        )

    def pieces(self, text: str) -> list[str]:
        """The text's pieces, uncut, without [CLS] and [SEP]."""
        raise NotImplementedError

    def _encode_block(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of n texts end to end, (total,), and how many each has, (n,); none cut or added."""
        raise NotImplementedError

    def _surround(
        self, ids: np.ndarray, lengths: np.ndarray, max_len: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cut each text to max_len - 2 ids, add [CLS] and [SEP]: ids, lengths (n,), cut (n,)."""
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
        """Lists of ids → ids end to end, (total,), and lengths (rows,)."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.fromiter(chain.from_iterable(rows), self.ids_dtype, lengths.sum()), lengths


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, run word by word (`bert`, as the notebook) or on the text (`none`).

    `bert` gives the ids of gluonnlp 0.10's BERTVocab.from_sentencepiece, BERTSPTokenizer with
    lower=False, and BERTSentenceTransform with pair=False. `none` gives SentencePiece's own ids, as
    SKT's tokenizer on the hub. With either, "[CLS]" in a text is not the special token.
    """

    def __init__(
        self,
        model: Path,
        pretokenize: str,
        *,
        cls_token: str = "[CLS]",
        sep_token: str = "[SEP]",
        pad_token: str = "[PAD]",
        unk_token: str = "[UNK]",
    ):
        """Raises InputError when the model cannot be read or lacks a special token."""
        from sentencepiece import SentencePieceProcessor

        if pretokenize not in PRETOKENIZE:
            raise InputError(f"pretokenize must be {' or '.join(PRETOKENIZE)}, got {pretokenize!r}")
        try:
            self._model = SentencePieceProcessor(model_proto=model.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{model}: not found") from None
        except (RuntimeError, ValueError):
            raise InputError(f"{model}: not a SentencePiece model") from None
        self.pretokenize = pretokenize
        self.vocab_size = len(self._model)
        # piece_to_id answers an unknown piece with the unknown id, so it cannot be the judge.
        index = {self._model.id_to_piece(row): row for row in range(self.vocab_size)}
        self.cls_id, self.sep_id, self.pad_id, self.unk_id = find_special(
            index, (cls_token, sep_token, pad_token, unk_token), model
        )
        if self.unk_id != self._model.unk_id():
            raise InputError(f"{model}: {unk_token} is not the model's unknown piece")

    def pieces(self, text: str) -> list[str]:
        """The text's pieces, uncut, without [CLS] and [SEP]; the unknown stands as itself."""
        words = basic_tokenize(text) if self.pretokenize == "bert" else [text]
        return list(chain.from_iterable(self._model.encode(words, out_type=str)))

    def _encode_block(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if self.pretokenize == "none":
            return self._run(texts)
        try:
            words, rows, until = rough_words(texts)
        except UnicodeEncodeError:
            check_utf8(texts)
            raise
        # A rough word has no newline, and blanks take no part in what basic_clean does to others.
        parts, parts_until = split_lines(basic_clean("\n".join(words)))
        ids, lengths = self._run(parts)
        offsets = ends(lengths)[parts_until]  # of the distinct words' ids
        starts, lengths = offsets[rows], np.diff(offsets)[rows]
        # Every word of every text takes its ids from the table: `lengths` of them from `starts` on.
        offsets = ends(lengths)
        source = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return ids[source], np.diff(offsets[until])

    def _run(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """SentencePiece on each text: ids end to end, (total,), and lengths (texts,)."""
        texts = list(texts)
        try:
            return self._ragged(self._model.encode(texts, out_type=int))
        except (RuntimeError, TypeError):
            check_utf8(texts)
            raise


class WordPieceTokenizer(Tokenizer):
    """A vocab.txt with BERT's basic tokenizer and WordPiece: ids as transformers' BertTokenizer.

    Unlike with SentencePiece, "[CLS]" in a text is the special token: transformers has it so. Given
    up: tokens added to the vocabulary, and special tokens that swallow blanks (lstrip, rstrip).
    """

    pretokenize = "bert"

    def __init__(self, folder: Path):
        """Reads vocab.txt and, where present, tokenizer_config.json; raises InputError."""
        from tokenizers import AddedToken, normalizers, pre_tokenizers
        from tokenizers import Tokenizer as Backend
        from tokenizers.models import WordPiece

        file = folder / "vocab.txt"
        config = read_json(folder / "tokenizer_config.json", missing={})
        try:
            # Not splitlines: a vocabulary has pieces that are line separators to Python.
            lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except FileNotFoundError:
            raise InputError(f"{file}: not found") from None
        except UnicodeDecodeError:
            raise InputError(f"{file}: not UTF-8") from None
        index = {piece: row for row, piece in enumerate(lines)}
        special = {}
        for name in ("cls", "sep", "pad", "unk", "mask"):
            token = config.get(f"{name}_token", f"[{name.upper()}]")
            special[name] = token["content"] if isinstance(token, Mapping) else token
        self.cls_id, self.sep_id, self.pad_id, self.unk_id, _ = find_special(
            index, special.values(), file
        )
        self._backend = Backend(WordPiece(index, unk_token=special["unk"]))
        self._backend.normalizer = normalizers.BertNormalizer(
            lowercase=config.get("do_lower_case", True),
            strip_accents=config.get("strip_accents"),
            handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        )
        self._backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._backend.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in special.values()]
        )
        self.vocab_size = self._backend.get_vocab_size()

    def pieces(self, text: str) -> list[str]:
        """The text's pieces, uncut, without [CLS] and [SEP]; an unknown word stands as [UNK]."""
        return self._backend.encode(text, add_special_tokens=False).tokens

    def _encode_block(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        texts = list(texts)
        try:
            rows = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            check_utf8(texts)
            raise
        return self._ragged([row.ids for row in rows])


def find_special(index: Mapping[str, int], tokens: Iterable[str], file: Path) -> list[int]:
    """Ids of the special tokens; raises InputError for one that the vocabulary lacks."""
    for token in tokens:
        if token not in index:
            raise InputError(f"{file}: the vocabulary has no {token}")
    return [index[token] for token in tokens]


def check_utf8(texts: Iterable[str]) -> None:
    """Raise InputError for the first text with a lone surrogate."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start]
            raise InputError(f"a text holds {half!a}, half of a surrogate pair") from None


def read_json(file: Path, missing: Any = None) -> Any:
    """A JSON file's content, or `missing` where there is no file; raises InputError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise InputError(f"{file}: not found") from None
    except ValueError as error:
        raise InputError(f"{file}: not readable as JSON: {error}") from None


def load_tokenizer(folder: Path, card: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of an encoder's folder.

    `card` says which: `tokenizer: sentencepiece` (spiece.model, with `pretokenize`) or `wordpiece`
    (vocab.txt). Without one, the folder's card.json says it. Raises InputError.
    """
    if card is None:
        card = read_json(folder / "card.json")
    if card["tokenizer"] == "sentencepiece":
        return SentencePieceTokenizer(folder / "spiece.model", card["pretokenize"])
    if card["tokenizer"] == "wordpiece":
        return WordPieceTokenizer(folder)
    raise InputError(f"tokenizer must be sentencepiece or wordpiece, got {card['tokenizer']!r}")
