"""Text → emotion, for the command line, for spreadsheets and for programs.

In: a classifier's folder and sentences.
Out: for each sentence its label and the probability of every class. Sentences are personal data:
they are printed only with --show-text and written only to the --output file.
"""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from storyflower.common.errors import InputError
from storyflower.interim.tokens import TokenArrays
from storyflower.model import scoring
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.device import Placement, choose
from storyflower.model.folder import load_classifier
from storyflower.model.packed import pack
from storyflower.sheets import sheet, write
from storyflower.sheets.read import open_sheet
from storyflower.tokenizer.base import Tokens
from storyflower.tokenizer.load import load_tokenizer

# If this share of a text's tokens is [UNK], the model can read hardly any of it. SentencePiece
# knows the blank before each word, so a share of one half can mean that every word is unknown.
MOSTLY = 0.5
PRECISIONS = ("fp32", "bf16")
# Limits on how much of a file is in memory at a time: rows, and roughly characters
BATCH, BATCH_TEXT = 4096, 2**24


@dataclass(frozen=True)
class Prediction:
    """The most probable label and the probability of every class, most probable first."""

    label: str
    probabilities: dict[str, float]


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
        self._network = network.to(placement.device)
        if precision == "bf16":
            network.encoder.to(torch.bfloat16)
        pack(network.encoder)
        self._placement = placement
        self._max_len = document["params"]["max_len"]
        self._tokenizer = load_tokenizer(folder)
        self._process = os.getpid()
        one_thread_after_fork()

    @classmethod
    def load(
        cls, folder: str | Path, device: str = "auto", precision: str = "fp32"
    ) -> "Classifier":
        """Load a folder written by the train stage.

        It computes in float32 on every device, or with the encoder's weights kept in bfloat16
        ("bf16"): faster where the hardware multiplies it, slower elsewhere, and less exact. Raises
        InputError when the folder is missing, incomplete or damaged, or the precision is neither.
        """
        if precision not in PRECISIONS:
            raise InputError(f"precision must be {' or '.join(PRECISIONS)}, got {precision!r}")
        folder = Path(folder)
        network, document = load_classifier(folder)
        return cls(network, document, folder, choose(device, "fp32"), precision)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """One Prediction for each text, in order; [] for no texts.

        Texts are normalized to NFC, as in training. Some keyboards and macOS write NFD, which is
        not in the vocabulary.
        """
        return self.predict_with_unknown(texts)[0]

    def predict_with_unknown(self, texts: Sequence[str]) -> tuple[list[Prediction], np.ndarray]:
        """As predict, plus the share of each text's tokens that are [UNK], (texts,) float."""
        if isinstance(texts, str):
            raise TypeError("predict takes a list of texts, not one text")
        if self._placement.device.type != "cpu" and os.getpid() != self._process:
            raise RuntimeError(
                f"this Classifier was loaded on {self._placement.device.type} before a fork; "
                "load it in each process"
            )
        tokens = self._encode(texts)
        table = TokenArrays(tokens.ids, tokens.offsets, np.zeros(len(texts), np.int64))
        rows = scoring.probabilities(self._network, table, self._placement)
        return [self._prediction(row) for row in rows], self._unknown_shares(tokens)

    def unknown_shares(self, texts: Sequence[str]) -> np.ndarray:
        """The share of each text's tokens that are [UNK], (texts,) float."""
        return self._unknown_shares(self._encode(texts))

    def _unknown_shares(self, tokens: Tokens) -> np.ndarray:
        before = np.concatenate([[0], np.cumsum(tokens.ids == self._tokenizer.unk_id)])
        unknown = np.diff(before[tokens.offsets])
        return unknown / np.maximum(np.diff(tokens.offsets) - 2, 1)  # without [CLS] and [SEP]

    def _encode(self, texts: Sequence[str]) -> Tokens:
        normal = [unicodedata.normalize("NFC", t) if isinstance(t, str) else t for t in texts]
        return self._tokenizer.encode(normal, self._max_len)

    def _prediction(self, row: np.ndarray) -> Prediction:
        order = np.argsort(-row, kind="stable")
        ranked = {self.labels[i]: float(row[i]) for i in order}
        return Prediction(self.labels[order[0]], ranked)


@cache
def one_thread_after_fork() -> None:
    """Make torch use one thread in any process forked from this one.

    A fork does not copy the other threads, so OpenMP would wait for them forever.
    """
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def predict_file(*, folder: Path, source: Path, column: str, output: Path) -> tuple[int, list[int]]:
    """Predict one column of an .xlsx or .csv file; write row, text, label and p(class) of each row.

    Rows keep their order and their numbers from `source`. Blank rows are left out, and a row whose
    text says nothing gets no label. Returns how many rows were written, and the numbers of the rows
    that are mostly [UNK]. Raises InputError for bad input, and if the output is the input file.
    """
    for path in (source, output):
        if path.suffix.lower() not in write.SUFFIXES:
            raise InputError(f"{path}: --input and --output are .xlsx or .csv files")
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder")
    name = sheet.header([column])[0]
    table = open_sheet(source, {name})
    if output.exists() and output.samefile(source):
        raise InputError(f"{output}: is the input; choose another name for the output")
    index = sheet.column_of(table, name)
    classifier = Classifier.load(folder)
    count, unknown = 0, []

    def rows() -> Iterator[list[str | float]]:
        nonlocal count
        texts = (
            (number, sheet.cell_string(table, number, index, cells))
            for number, cells in table.rows
            if any(cell != "" for cell in cells)
        )
        for batch in batches(texts):
            readable = [text for _, text in batch if not sheet.says_nothing(text)]
            answers = zip(*classifier.predict_with_unknown(readable), strict=True)
            for number, text in batch:
                label, shares = "", [""] * len(classifier.labels)
                if not sheet.says_nothing(text):
                    prediction, share = next(answers)
                    if share >= MOSTLY:
                        unknown.append(number)
                    label = prediction.label
                    shares = [prediction.probabilities[name] for name in classifier.labels]
                yield [number, text, label, *shares]
                count += 1

    header = ["row", column, "label", *(f"p({name})" for name in classifier.labels)]
    write.write_rows(output, header, rows())
    return count, unknown


def batches(texts: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    batch: list[tuple[int, str]] = []
    size = 0
    for number, text in texts:
        batch.append((number, text))
        size += len(text)
        if len(batch) == BATCH or size > BATCH_TEXT:
            yield batch
            batch, size = [], 0
    yield batch
