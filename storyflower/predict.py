"""Text → emotion, for the command line, for spreadsheets and for programs.

In: a classifier's folder and texts: sentences, or diaries of any length.
Out: for each text its label and the probability of every class; for a diary those of its pieces
too, and on request how much each word moved the answer. Texts are personal data: they are printed
only with --show-text and written only to the --output file.
"""

import os
import sys
import unicodedata
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
import torch

from storyflower import diary as cutting
from storyflower.common.errors import InputError
from storyflower.common.files import read_json
from storyflower.interim.tokens import TokenArrays
from storyflower.model import scoring
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.device import Placement, choose
from storyflower.model.folder import damaged, load_classifier
from storyflower.model.forward import UNPADDED
from storyflower.model.packed import pack
from storyflower.sheets import sheet
from storyflower.tokenizer.base import Tokens
from storyflower.tokenizer.load import load_tokenizer

UNSURE = "모름"  # the label of an answer that is less probable than asked for
# If this share of a text's tokens is [UNK], the model can read hardly any of it. SentencePiece
# knows the blank before each word, so a share of one half can mean that every word is unknown.
MOSTLY = 0.5
PRECISIONS = ("fp32", "bf16")

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Scores:
    """What the network says about n texts."""

    probabilities: np.ndarray  # (n, classes) float32, in the order of Classifier.labels
    cut: np.ndarray  # (n,) bool: the text is longer than max_len, and its end was not read
    unknown: np.ndarray  # (n,) float: the share of its tokens that are [UNK]


# One answer in the making: it yields the texts that it needs scored, once, is sent their Scores,
# and returns the answer. Whoever has several can score their texts together.
Steps = Generator[list[str], Scores, Answer]


@dataclass(frozen=True)
class Prediction:
    """The most probable label and the probability of every class, most probable first.

    The label is UNSURE if its probability is below what was asked for.
    """

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Piece:
    """A sentence of a diary, or a window of a long one: diary[start:end], in code points."""

    start: int
    end: int
    text: str
    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Reading(Prediction):
    """A diary's label and probabilities, and those of its pieces in order."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Word:
    """A word, text[start:end], and what it adds to the probability of the most probable class.

    `change` is p with the word minus p without it: above 0, the word speaks for the class.
    """

    start: int
    end: int
    text: str
    change: float


@dataclass(frozen=True)
class Explanation(Prediction):
    """A text's label and probabilities, and how much each word moved the first of them."""

    words: tuple[Word, ...]


class Classifier:
    """A trained classifier, ready to predict.

    On a CPU it also works in processes forked later (gunicorn --preload), with one thread in each.
    On a GPU it does not survive a fork: in the forked process, predict raises RuntimeError.
    """

    def __init__(
        self,
        network: EmotionClassifier,
        document: dict,
        folder: Path,
        placement: Placement,
        precision: str = "fp32",
    ):
        """Use `Classifier.load` instead."""
        self.labels: tuple[str, ...] = tuple(document["labels"])
        self.temperature: float | None = document["temperature"]  # None: not calibrated
        self.max_len: int = document["params"]["max_len"]  # token ids, [CLS] and [SEP] included
        self._network = network.to(placement.device)
        if precision == "bf16":
            network.encoder.to(torch.bfloat16)
        pack(network.encoder)
        self._placement = placement
        self._tokenizer = load_tokenizer(folder)
        self._process = os.getpid()
        one_thread_after_fork()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Classifier cannot be pickled; load it in each process: Classifier.load(folder)"
        )

    def __copy__(self, _: object = None) -> "Classifier":
        return self  # nothing in it changes

    __deepcopy__ = __copy__

    @classmethod
    def load(
        cls, folder: str | Path, device: str = "auto", precision: str = "fp32"
    ) -> "Classifier":
        """Load a folder written by the train stage.

        It computes in float32 on every device, or with the encoder's weights kept in bfloat16
        ("bf16"): faster where the hardware multiplies it, slower elsewhere, and less exact.
        Encoders that are computed with padding keep float32 weights and multiply in bfloat16.
        Raises InputError when the folder is missing, incomplete or damaged, or the precision is
        neither.
        """
        if precision not in PRECISIONS:
            raise InputError(f"precision must be {' or '.join(PRECISIONS)}, got {precision!r}")
        folder = Path(folder)
        network, document = load_classifier(folder)
        if network.encoder.config.model_type in UNPADDED:
            return cls(network, document, folder, choose(device, "fp32"), precision)
        # The modules of other families are sure of bfloat16 only in autocast, weights in float32.
        return cls(network, document, folder, choose(device, precision))

    def predict(self, texts: Sequence[str], unsure_below: float = 0.0) -> list[Prediction]:
        """One Prediction for each text, in order; [] for no texts.

        A text over `max_len` token ids is cut there, as in training; `is_cut` says which. Texts are
        normalized to NFC, as in training. Some keyboards and macOS write NFD, which is not in the
        vocabulary. An answer less probable than `unsure_below`, 0 to 1, is labelled UNSURE.
        """
        return self._predicted(texts, unsure_below)[0]

    def predict_whole(
        self, texts: Sequence[str], unsure_below: float = 0.0
    ) -> tuple[list[Prediction], np.ndarray]:
        """As predict, but a text over `max_len` is read whole, as `read` does.

        The second result is the share of each text's tokens that are [UNK], (texts,) float, of its
        first `max_len` token ids.
        """
        predictions, scores = self._predicted(texts, unsure_below)
        long = np.flatnonzero(scores.cut).tolist()
        readings = self.read_all([texts[index] for index in long], unsure_below)
        for index, reading in zip(long, readings, strict=True):
            predictions[index] = Prediction(reading.label, reading.probabilities)
        return predictions, scores.unknown

    def _predicted(
        self, texts: Sequence[str], unsure_below: float
    ) -> tuple[list[Prediction], Scores]:
        if isinstance(texts, str):
            raise TypeError("predict takes a list of texts, not one text")
        steps = self.predict_steps(texts, unsure_below)
        return finish(steps, self.score(next(steps)))

    def predict_steps(
        self, texts: Sequence[str], unsure_below: float = 0.0
    ) -> Steps[tuple[list[Prediction], Scores]]:
        """As predict, for a caller that scores the texts of several answers together."""
        check_share(unsure_below)
        scores = yield list(texts)
        rows = scores.probabilities
        return [Prediction(*self._answer(row, unsure_below)) for row in rows], scores

    def is_cut(self, texts: Sequence[str]) -> np.ndarray:
        """Whether predict reads only the first `max_len` token ids of each text, (texts,) bool."""
        return self._encode(texts, self.max_len).cut

    def read(self, diary: str, unsure_below: float = 0.0) -> Reading:
        """A diary of any length: its pieces and the whole. Nothing is cut away.

        Pieces end at line ends and sentence marks; one over `max_len` token ids is cut into windows
        between words. The whole is read in windows of neighbouring pieces, as many as `max_len`
        holds, and is the mean of their probabilities, weighted by tokens. Raises InputError for a
        text that says nothing.
        """
        if not isinstance(diary, str):
            raise TypeError("read takes one text; read_all takes a list of texts")
        return self.read_all([diary], unsure_below)[0]

    def read_all(self, diaries: Sequence[str], unsure_below: float = 0.0) -> list[Reading]:
        """As read, for many diaries in shared batches; [] for no diaries."""
        check_share(unsure_below)
        if isinstance(diaries, str):
            raise TypeError("read_all takes a list of texts, not one text")
        steps = [self.read_steps(diary, unsure_below) for diary in diaries]
        asked = [next(each) for each in steps]
        scores = self.score([text for texts in asked for text in texts])
        return [
            finish(each, part)
            for each, part in zip(steps, split(scores, map(len, asked)), strict=True)
        ]

    def read_steps(self, diary: str, unsure_below: float = 0.0) -> Steps[Reading]:
        """As read, for a caller that scores the texts of several answers together."""
        self._check_text(diary)
        pieces = cutting.cut(diary, cutting.sentences(diary), self._count, self.max_len)
        windows = cutting.windows(diary, pieces, self._count, self.max_len)
        # A diary of one sentence has the same span as piece and as window: it is scored once.
        spans = list(dict.fromkeys(span for some in (pieces, windows) for span, _ in some))
        scores = yield [diary[start:end] for start, end in spans]
        rows = dict(zip(spans, scores.probabilities, strict=True))
        of_windows = np.stack([rows[span] for span, _ in windows])
        row = cutting.whole(of_windows, np.array([size for _, size in windows]))
        answers = (
            Piece(*span, diary[slice(*span)], *self._answer(rows[span], unsure_below))
            for span, _ in pieces
        )
        return Reading(*self._answer(row, unsure_below), tuple(answers))

    def explain(self, text: str, unsure_below: float = 0.0) -> Explanation:
        """How much each word moved the answer: the text is read once more without each of them.

        A word is what stands between white space and has token ids. Raises InputError for a text
        that says nothing, and for one over `max_len` token ids: explain the pieces that `read`
        gives.
        """
        check_share(unsure_below)
        if not isinstance(text, str):
            raise TypeError("explain takes one text")
        steps = self.explain_steps(text, unsure_below)
        return finish(steps, self.score(next(steps)))

    def explain_steps(self, text: str, unsure_below: float = 0.0) -> Steps[Explanation]:
        """As explain, for a caller that scores the texts of several answers together."""
        self._check_text(text)
        if self.is_cut([text])[0]:
            raise InputError(
                f"the text has more than {self.max_len} token ids; explain its pieces one by one"
            )
        words = [word.span() for word in cutting.WORD.finditer(text)]
        # A word without token ids changes nothing. So there are at most about max_len variants.
        read = self._count([text[start:end] for start, end in words]) > cutting.FRAME
        words = [span for span, is_read in zip(words, read, strict=True) if is_read]
        strings = [text[start:end] for start, end in words]
        without = [" ".join(strings[:i] + strings[i + 1 :]) for i in range(len(strings))]
        scores = yield [text, *without]
        row, *others = scores.probabilities
        best = row.argmax()
        changes = (float(row[best] - other[best]) for other in others)
        explained = map(Word, *zip(*words, strict=True), strings, changes)
        return Explanation(*self._answer(row, unsure_below), tuple(explained))

    def unknown_shares(self, texts: Sequence[str]) -> np.ndarray:
        """The share of each text's tokens that are [UNK], (texts,) float."""
        return self._unknown_shares(self._encode(texts, self.max_len))

    def _unknown_shares(self, tokens: Tokens) -> np.ndarray:
        before = np.concatenate([[0], np.cumsum(tokens.ids == self._tokenizer.unk_id)])
        unknown = np.diff(before[tokens.offsets])
        return unknown / np.maximum(np.diff(tokens.offsets) - 2, 1)  # without [CLS] and [SEP]

    def _check_text(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"a text must be str, got {type(text).__name__}")
        if sheet.says_nothing(text):
            raise InputError("no text")

    def _count(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids of each text, [CLS] and [SEP] included, (texts,) int64; nothing is cut."""
        return np.diff(self._encode(texts, sys.maxsize).offsets)

    def _encode(self, texts: Sequence[str], max_len: int) -> Tokens:
        normal = [unicodedata.normalize("NFC", t) if isinstance(t, str) else t for t in texts]
        return self._tokenizer.encode(normal, max_len)

    def score(self, texts: Sequence[str]) -> Scores:
        """The network's answers for n texts, each cut at `max_len`, in one go."""
        if self._placement.device.type != "cpu" and os.getpid() != self._process:
            raise RuntimeError(
                f"this Classifier was loaded on {self._placement.device.type} before a fork; "
                "load it in each process"
            )
        tokens = self._encode(texts, self.max_len)
        table = TokenArrays(tokens.ids, tokens.offsets, np.zeros(len(texts), np.int64))
        rows = scoring.probabilities(
            self._network, table, self._placement, temperature=self.temperature
        )
        return Scores(rows, tokens.cut, self._unknown_shares(tokens))

    def _answer(self, row: np.ndarray, unsure_below: float) -> tuple[str, dict[str, float]]:
        order = np.argsort(-row, kind="stable")
        ranked = {self.labels[i]: float(row[i]) for i in order}
        best = self.labels[order[0]]
        return best if ranked[best] >= unsure_below else UNSURE, ranked


def split(scores: Scores, sizes: Iterable[int]) -> Iterator[Scores]:
    """The scores of texts in a row → those of the first so many, of the next so many, …"""
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        yield Scores(scores.probabilities[part], scores.cut[part], scores.unknown[part])
        start += size


def finish(steps: Steps[Answer], scores: Scores) -> Answer:
    """Send the scores that it waits for; return its answer."""
    try:
        steps.send(scores)
    except StopIteration as end:
        return end.value
    raise RuntimeError("an answer asked for texts twice")


def text_column(folder: Path) -> str:
    """The first text column of a classifier's corpus; AI Hub's, where the folder names none."""
    # Not at the top: loading a classifier does without pydantic.
    from storyflower.common.params import AI_HUB_TEXTS

    file = folder / "classifier.json"
    document = read_json(file, missing={})
    try:
        columns = document.get("params", {}).get("text_columns", AI_HUB_TEXTS)
        first = columns if isinstance(columns, str) else columns[0]
        first.encode()
    except (AttributeError, LookupError, TypeError, ValueError):
        raise damaged(file, "params.text_columns is no list of headers") from None
    return first


def check_share(unsure_below: float) -> None:
    """Raise InputError unless a share is between 0 and 1."""
    if not 0 <= unsure_below <= 1:
        raise InputError(f"unsure_below must be between 0 and 1, got {unsure_below:g}")


@cache
def one_thread_after_fork() -> None:
    """Make torch use one thread in any process forked from this one.

    A fork does not copy the other threads, so OpenMP would wait for them forever.
    """
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
