"""gluonnlp 0.10's BERTBasicTokenizer(lower=False): text → words.

The original notebook did not run SentencePiece on whole texts: BERTSPTokenizer first cuts a text
into words and runs SentencePiece on each word alone. For most texts this gives other ids.
"""

import string
import unicodedata
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# The Han ideographs that BERT makes separate words: unified, extensions A to E, compatibility.
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
# str.split splits at these. BERT drops them as control characters, so the text around them joins.
FALSE_BLANKS = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"


class Spacing(dict):
    """For str.translate: drops control and format characters; blanks around Han and punctuation.

    A cache, filled when a character first occurs: at most one entry per code point.
    """

    def __missing__(self, code: int) -> int | str:
        char = chr(code)
        new: int | str = code
        if char in "\t\n\r":  # blanks for BERT, although Unicode calls them control characters
            pass
        elif char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cf"):
            new = ""
        elif is_punctuation(char) or any(first <= code <= last for first, last in HAN):
            new = f" {char} "
        self[code] = new
        return new


class Stripping(dict):
    """For str.translate after NFD: drops non-spacing marks, puts blanks around punctuation.

    Decomposition can produce punctuation: U+2260, the "not equal" sign, becomes "=" and a mark.
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
    """Whether a character is Unicode punctuation or an ASCII symbol, such as $ + < = > ^ ` | ~."""
    return char in string.punctuation or unicodedata.category(char).startswith("P")


def basic_clean(text: str) -> str:
    """The text with blanks between its words, as BERT's basic tokenizer splits it.

    Source: gluonnlp 0.10, BERTBasicTokenizer(lower=False). Unlike Google's and Hugging Face's, that
    release decomposes (NFD) and drops accents even when it does not lower-case.
    """
    return unicodedata.normalize("NFD", text.translate(SPACING)).translate(STRIPPING)


def basic_tokenize(text: str) -> list[str]:
    """Cut a text into words, decomposed (NFD), as gluonnlp's BERTBasicTokenizer does."""
    return basic_clean(text).split()


def rough_words(texts: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Cut n texts at ASCII blanks and punctuation.

    Returns the distinct words; for each word of all texts, its index in that list, (words,); and
    the offsets of the texts in these indices, (n + 1,). basic_tokenize cuts at the same places, and
    never joins text across such a cut, so the rest can be done once for each distinct word. pyarrow
    does the cutting and finds the distinct words: a Python loop would be the slowest part.
    """
    lines = "\n".join([text.replace("\n", " ") for text in texts])
    for char in FALSE_BLANKS:
        lines = lines.replace(char, "")
    for char in string.punctuation:
        lines = lines.replace(char, f" {char} ")
    # Trimmed first: blanks at an end would give an empty word.
    trimmed = pc.ascii_trim_whitespace(pa.array(lines.split("\n") if texts else [], pa.string()))
    split = pc.ascii_split_whitespace(trimmed)
    words = split.values.dictionary_encode()
    return words.dictionary.to_pylist(), words.indices.to_numpy(), split.offsets.to_numpy()


def split_lines(lines: str) -> tuple[list[str], list[int]]:
    """The words of all lines, and the offsets of the lines in them, (lines + 1)."""
    words: list[str] = []
    until = [0]
    for line in lines.split("\n"):
        words += line.split()
        until.append(len(words))
    return words, until
