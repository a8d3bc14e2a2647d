"""gluonnlp 0.10's BERTBasicTokenizer(lower=False): text → words.

The original notebook did not run SentencePiece on whole texts: BERTSPTokenizer first cuts a text
into words and runs SentencePiece on each word alone. For most texts this gives other ids.
"""

import re
import string
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# The Han ideographs that BERT makes separate words: unified, extensions A to E, compatibility.
HAN = re.compile(
    "[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b820-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f]"
)
# str.split splits at these. BERT drops them as control characters, so the text around them joins.
FALSE_BLANKS = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"


class Characters(dict):
    """For str.translate: what becomes of a character, filled in when it first occurs.

    So it has at most one entry per code point.
    """

    def __init__(self, becomes: Callable[[str], str]):
        self._becomes = becomes

    def __missing__(self, code: int) -> str:
        self[code] = self._becomes(chr(code))
        return self[code]


def spaced(char: str) -> str:
    """Drops control and format characters; puts blanks around Han and punctuation."""
    if char in "\t\n\r":  # blanks for BERT, although Unicode calls them control characters
        return char
    if char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cf"):
        return ""
    return f" {char} " if is_punctuation(char) or HAN.match(char) else char


def stripped(char: str) -> str:
    """After NFD: drops non-spacing marks, puts blanks around punctuation.

    Decomposition can produce punctuation: U+2260, the "not equal" sign, becomes "=" and a mark.
    """
    if unicodedata.category(char) == "Mn":
        return ""
    return f" {char} " if is_punctuation(char) else char


SPACING, STRIPPING = Characters(spaced), Characters(stripped)


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
