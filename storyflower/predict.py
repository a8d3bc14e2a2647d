"""Text → emotion, for the command line, for spreadsheets and for programs.

In: a classifier's folder and sentences.
Out: for each sentence its label and the probability of every class. Sentences are personal: they
are shown only with --show-text, and written only to the file that --output names.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storyflower.common.errors import InputError
from storyflower.interim.tokens import TokenArrays
from storyflower.model import scoring
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.device import Placement, choose
from storyflower.model.folder import load_classifier
from storyflower.sheets import sheet, write
from storyflower.sheets.read import open_sheet
from storyflower.tokenizer.load import load_tokenizer

# Of a file, held in memory at a time: this many rows, and about this many characters
BATCH, BATCH_TEXT = 4096, 2**24


@dataclass(frozen=True)
class Prediction:
    """The most probable label and the probability of every class, most probable first."""

    label: str
    probabilities: dict[str, float]


class Classifier:
    """A trained classifier, ready to predict."""

    def __init__(self, network: EmotionClassifier, document: dict, folder: Path, place: Placement):
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
        network, document = load_classifier(folder)
        return cls(network, document, folder, choose(device, "fp32"))

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """One Prediction for each text, in order; [] for no texts."""
        if isinstance(texts, str):
            raise TypeError("predict takes a list of texts, not one text")
        tokens = self._tokenizer.encode(list(texts), self._max_len)
        table = TokenArrays(tokens.ids, tokens.offsets, np.zeros(len(texts), np.int64))
        rows = scoring.probabilities(self._network, table, self._place)
        return [self._prediction(row) for row in rows]

    def _prediction(self, row: np.ndarray) -> Prediction:
        order = np.argsort(-row, kind="stable")
        ranked = {self.labels[i]: float(row[i]) for i in order}
        return Prediction(self.labels[order[0]], ranked)


def predict_file(folder: Path, source: Path, column: str, output: Path) -> int:
    """Predict one column of an .xlsx or .csv file; write row, text, label and p(class) of each row.

    Rows keep their order and the number that they have in `source`; blank rows are left out, and a
    row whose text is empty gets no label. Returns the number of rows written. Raises InputError for
    bad input, and for an output that is the input.
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
    place = sheet.column_of(table, name)
    classifier = Classifier.load(folder)
    count = 0

    def rows() -> Iterator[list[str | float]]:
        nonlocal count
        texts = (
            (number, sheet.cell_text(table, number, place, cells))
            for number, cells in table.rows
            if any(cell != "" for cell in cells)
        )
        for batch in batches(texts):
            readable = [text for _, text in batch if sheet.is_visible(text)]
            found = iter(classifier.predict(readable))
            for number, text in batch:
                label, shares = "", [""] * len(classifier.labels)
                if sheet.is_visible(text):
                    prediction = next(found)
                    label = prediction.label
                    shares = [prediction.probabilities[name] for name in classifier.labels]
                yield [number, text, label, *shares]
                count += 1

    header = ["row", column, "label", *(f"p({name})" for name in classifier.labels)]
    write.write_rows(output, header, rows())
    return count


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
