"""gluonnlp 0.10's BERTBasicTokenizer(lower=False): text → words.

The original notebook did not run SentencePiece on the text: BERTSPTokenizer cuts it into words
first and runs SentencePiece on each word alone, which gives other ids for most texts.
"""

import string
import unicodedata
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
