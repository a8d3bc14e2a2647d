"""Text → emotion, for the command line and for programs.

Enters: a classifier's folder and sentences. Leaves: for each sentence its label and the
probability of every class. Sentences are never written anywhere.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storyflower import model, scoring
from storyflower.device import Placement, choose
from storyflower.errors import InputError
from storyflower.tensors import TokenTable
from storyflower.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Prediction:
    """The most probable label and the probability of every class, most probable first."""

    label: str
    probabilities: dict[str, float]


class Classifier:
    """A trained classifier, ready to predict."""

    def __init__(
        self, network: model.EmotionClassifier, document: dict, folder: Path, place: Placement
    ):
        """Use `Classifier.load`."""
        self.labels: tuple[str, ...] = tuple(document["labels"])
        self._network = network.to(place.device)
        self._place = place
        self._max_len = document["params"]["max_len"]
        self._tokenizer = load_tokenizer(folder)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> "Classifier":
        """Load a folder written by the train stage; computes in float32 on every device.

        Raises InputError when the folder is missing, incomplete or damaged.
        """
        folder = Path(folder)
        network, document = model.load(folder)
        return cls(network, document, folder, choose(device, "fp32"))

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """One Prediction for each text, in order; [] for no texts."""
        if isinstance(texts, str):
            raise TypeError("predict takes a list of texts, not one text")
        if not texts:
            return []
        tokens = self._tokenizer.encode(list(texts), self._max_len)
        table = TokenTable(tokens.ids, tokens.offsets, np.zeros(len(texts), np.int64))
        rows = scoring.probabilities(self._network, table, self._place)
        return [self._prediction(row) for row in rows]

    def _prediction(self, row: np.ndarray) -> Prediction:
        order = np.argsort(-row, kind="stable")
        ranked = {self.labels[i]: float(row[i]) for i in order}
        return Prediction(self.labels[order[0]], ranked)


def command_line(arguments: Sequence[str]) -> None:
    """python -m storyflower predict [sentence …] [--model FOLDER] [--json]"""
    parser = argparse.ArgumentParser(
        prog="python -m storyflower predict", description="Say which emotion a sentence carries."
    )
    parser.add_argument("sentence", nargs="*", help="none: one sentence a line from standard input")
    parser.add_argument("--model", type=Path, default=Path("models/classifier"), metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for machines")
    options = parser.parse_args(arguments)
    if options.sentence:
        sentences = options.sentence
    else:
        try:
            text = sys.stdin.buffer.read().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InputError("standard input is not utf-8") from None
        sentences = [line for line in text.splitlines() if line.strip()]
    if not sentences:
        raise InputError("no sentence given; put one in quotes or send lines to standard input")
    classifier = Classifier.load(options.model)
    for sentence, found in zip(sentences, classifier.predict(sentences), strict=True):
        if options.json:
            row = {"text": sentence, "label": found.label, "probabilities": found.probabilities}
            print(json.dumps(row, ensure_ascii=False))
        else:
            shares = "  ".join(f"{name} {p:.1%}" for name, p in found.probabilities.items())
            print(f"{found.label}\t{shares}\t{sentence}")
