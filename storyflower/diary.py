"""A diary → the pieces that a classifier reads, and one answer made from many.

In: a text of any length, and a function that says how many token ids texts have.
Out: spans (start, end) of code points of that text. Nothing visible lies outside them.
Not supported: splitting Korean sentences that end without a mark; that needs a morphological
analyser. A diary without marks and line ends is cut by length alone.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from storyflower.sheets.sheet import is_visible

Span = tuple[int, int]
Count = Callable[[Sequence[str]], np.ndarray]  # texts → token ids of each, [CLS] and [SEP] too

FRAME = 2  # [CLS] and [SEP]
LINE = re.compile(r"[^\r\n\u2028\u2029]+")
WORD = re.compile(r"\S+")
BLANKS = re.compile(r"\s*")
# Full stops, exclamation and question marks, ellipses; full-width, Arabic and Devanagari too
MARKS = re.compile("[.!?…‥。．！？｡‼⁇⁈⁉؟।]+")
# A stop between these is part of a number, an address or a file name: 3.5, naver.com
GLUED = re.compile("[0-9A-Za-z]")
NUMBERED = re.compile("[0-9]{1,9}")  # "1." before an item of a list
CLOSING_QUOTES = "\"'”’»"
# Behind a mark: ^^ ;; :), letters that make no syllable (ㅋㅋ, ㅠㅠ), what joins parts of an emoji
BEHIND = re.compile("[~;:^_\u3131-\u3163\u200d\ufe0e\ufe0f]")
BEHIND_CATEGORIES = ("Pe", "Pf", "So", "Sk")  # brackets and quotes, such as 」, and emoji
FARTHEST = 8  # code points that a cut inside a word moves, to keep a character whole


def sentences(text: str) -> list[Span]:
    """Spans that end at line ends and behind sentence marks, without the white space around them.

    Behind a mark, closing quotes and brackets, ㅋㅋ, ㅠㅠ, emoticons and emoji belong to its
    sentence. A mark inside a number or a run of marks does not cut, nor one whose closing quote is
    followed by a letter ("가자."라고 했다). A span that holds nothing visible is left out.
    """
    spans = []
    for line in LINE.finditer(text):
        stop = line.end()
        start = seen = BLANKS.match(text, line.start(), stop).end()
        for mark in MARKS.finditer(text, start, stop):
            # Nothing is looked at twice: a hostile text would take hours.
            if mark.end() <= seen or is_inside(text, start, mark):
                continue
            seen = tail(text, mark.end(), stop)
            if seen < stop and text[seen - 1] in CLOSING_QUOTES and text[seen].isalpha():
                continue
            spans.append((start, seen))
            start = seen = BLANKS.match(text, seen, stop).end()
        spans.append((start, stop))
    stripped = (strip(text, *span) for span in spans)
    return [(start, end) for start, end in stripped if is_visible(text[start:end])]


def is_inside(text: str, start: int, mark: re.Match) -> bool:
    """Whether a run of marks, in a sentence from `start`, does not end it."""
    before, after = text[mark.start() - 1 : mark.start()], text[mark.end() : mark.end() + 1]
    if mark.group() not in (".", "．"):
        return False
    if GLUED.match(before) and GLUED.match(after):
        return True
    return NUMBERED.fullmatch(text, start, mark.start()) is not None


def tail(text: str, end: int, stop: int) -> int:
    """Where a sentence ends whose mark ends at `end`, in a line that ends at `stop`."""
    at = end
    while at < stop:
        character = text[at]
        if character.isspace():
            at += 1
            continue
        kind = unicodedata.category(character)
        if character in CLOSING_QUOTES:
            if text[at - 1].isspace():  # then it opens the next sentence
                break
        elif not (kind in BEHIND_CATEGORIES or BEHIND.match(character) or MARKS.match(character)):
            break
        at += 1
        end = at
    return end


def strip(text: str, start: int, end: int) -> Span:
    """The span without white space at its ends."""
    inner = text[start:end]
    return end - len(inner.lstrip()), start + len(inner.rstrip())


def cut(text: str, spans: Sequence[Span], count: Count, max_len: int) -> list[tuple[Span, int]]:
    """Spans of at most `max_len` token ids, with their numbers of ids, in order.

    A span with more is cut into windows of about equal length, at white space; a word with more is
    cut between characters. A single character is never cut, whatever its number of ids.
    """
    sizes = count([text[start:end] for start, end in spans])
    result: list[tuple[Span, int]] = []
    for (start, end), size in zip(spans, sizes.tolist(), strict=True):
        if size <= max_len or end - start == 1:
            result.append(((start, end), size))
        else:
            result += cut(text, divided(text, (start, end), count, max_len), count, max_len)
    return result


def divided(text: str, span: Span, count: Count, max_len: int) -> list[Span]:
    """A span cut into at least two; each probably has at most `max_len` ids."""
    words = [word.span() for word in WORD.finditer(text, *span)]
    if len(words) > 1:
        sizes = count([text[first:last] for first, last in words])
        groups = grouped(sizes - FRAME, max_len - FRAME)
        if len(groups) == 1:  # together they have more ids than one by one
            groups = [(0, len(words) // 2), (len(words) // 2, len(words))]
        return [(words[first][0], words[last - 1][1]) for first, last in groups]
    ((start, end),) = words
    (size,) = count([text[start:end]])
    parts = min(-(-(int(size) - FRAME) // (max_len - FRAME)), end - start)
    edges = [start, *(between(text, start + (end - start) * i // parts) for i in range(1, parts))]
    edges = sorted({edge for edge in edges if edge >= start} | {end})
    if len(edges) == 2:
        edges.insert(1, start + (end - start) // 2)
    return list(zip(edges[:-1], edges[1:], strict=True))


def between(text: str, at: int) -> int:
    """The nearest place from `at` to the left that does not cut a character in two.

    Such as a syllable in NFD, a letter and its accent, or the parts of an emoji.
    """
    for place in range(at, max(at - FARTHEST, 0), -1):
        after = text[place]
        joined = (
            unicodedata.category(after) in ("Mn", "Mc", "Me")
            or "\u1160" <= after <= "\u11ff"  # vowels and final consonants of decomposed Hangul
            or "\U0001f3fb" <= after <= "\U0001f3ff"  # skin tones
            or "\u200d" in text[place - 1 : place + 1]
        )
        if not joined:
            return place
    return at


def grouped(sizes: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """Neighbours put together: (first, last + 1) of groups whose sizes add up to about the same.

    No group exceeds `limit`, unless one member alone does.
    """
    total = int(sizes.sum())
    share = total / max(-(-total // limit), 1)
    groups, first, held = [], 0, 0
    for index, size in enumerate(sizes.tolist()):
        if index > first and (held + size > limit or held >= share):
            groups.append((first, index))
            first, held = index, 0
        held += size
    return [*groups, (first, len(sizes))] if len(sizes) else groups


def windows(
    text: str, pieces: Sequence[tuple[Span, int]], count: Count, max_len: int
) -> list[tuple[Span, int]]:
    """Neighbouring pieces read together, as many as `max_len` ids hold, with their numbers of ids.

    A diary that fits into `max_len` is one window.
    """
    sizes = np.array([size for _, size in pieces])
    groups = grouped(sizes - FRAME, max_len - FRAME)
    spans = [(pieces[first][0][0], pieces[last - 1][0][1]) for first, last in groups]
    return cut(text, spans, count, max_len)


def whole(probabilities: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The diary's probabilities (classes,) from those of its windows, (windows, classes).

    The mean, weighted by each window's number of token ids without [CLS] and [SEP].
    """
    weights = np.maximum(np.asarray(sizes, np.float64) - FRAME, 1)
    return weights @ probabilities / weights.sum()
