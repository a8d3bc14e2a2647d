"""How a diary's answer is best made from its parts: rules compared on joined dialogues.

    python -m benchmarks.diaries data/sample
    python -m benchmarks.diaries FOLDER --rows 5000              # any corpus folder

In: a corpus folder. A fifth of Training's distinct texts is held back; a classifier is trained on
the rest as params.yaml says, or on `--rows` of it.
Out: Markdown: the accuracy of each rule on diaries of 1 to 10 held-back dialogues, joined by a
space. "One" are dialogues of one feeling; "several" of at least two, and the label is the one that
most of them have. The classes are drawn evenly. The difference to the first rule is over all
diaries, with its paired-bootstrap 95% interval.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.default import Texts, read_corpus, trained
from storyflower import Classifier
from storyflower.common.errors import InputError, exit_with_line
from storyflower.common.files import read_json
from storyflower.common.params import Params
from storyflower.diary import FRAME, Count, cut, sentences, whole, windows
from storyflower.encoder.prepare import prepare
from storyflower.evaluate.metrics import bootstrap_mean
from storyflower.interim.labels import LabelIndex
from storyflower.interim.tokens import TokenArrays
from storyflower.model.folder import save_classifier
from storyflower.tokenizer.load import load_tokenizer
from storyflower.train.dev import held_back

HELD = 0.2  # share of Training
COLUMNS = {  # title → whether the diaries are of one feeling, and their numbers of dialogues
    "1 dialogue": (True, [1]),
    "one, 2–3": (True, [2, 3]),
    "one, 4–6": (True, [4, 5, 6]),
    "one, 7–10": (True, [7, 8, 9, 10]),
    "several, 3": (False, [3]),
    "several, 4–6": (False, [4, 5, 6]),
    "several, 7–10": (False, [7, 8, 9, 10]),
}


@dataclass(frozen=True)
class Parts:
    """What a classifier says of a diary's parts, and their numbers of token ids."""

    rows: np.ndarray  # (parts, classes)
    sizes: np.ndarray  # (parts,)

    def weighted(self) -> np.ndarray:
        return whole(self.rows, self.sizes)

    def mean(self) -> np.ndarray:
        return self.rows.mean(axis=0)

    def of_logits(self) -> np.ndarray:
        """Softmax of the mean of the logits, which is the normalized geometric mean."""
        product = np.exp(np.log(np.maximum(self.rows, 1e-38)).mean(axis=0))
        return product / product.sum()

    def of_weighted_logits(self) -> np.ndarray:
        weights = np.maximum(self.sizes - FRAME, 1)
        product = np.exp(weights @ np.log(np.maximum(self.rows, 1e-38)) / weights.sum())
        return product / product.sum()

    def largest(self) -> np.ndarray:
        return self.rows[self.sizes.argmax()]

    def surest(self) -> np.ndarray:
        return self.rows[self.rows.max(axis=1).argmax()]

    def first(self) -> np.ndarray:
        return self.rows[0]


@dataclass(frozen=True)
class Diary:
    label: int
    cut: Parts  # one part: what max_len leaves
    windows: Parts
    pieces: Parts  # sentences

    @property
    def fits(self) -> bool:
        return len(self.windows.rows) == 1


RULES: dict[str, Callable[[Diary], np.ndarray]] = {
    "windows of `max_len`: mean weighted by tokens": lambda diary: diary.windows.weighted(),
    "windows: plain mean": lambda diary: diary.windows.mean(),
    "windows: mean of logits": lambda diary: diary.windows.of_logits(),
    "windows: the largest": lambda diary: diary.windows.largest(),
    "sentences: mean weighted by tokens": lambda diary: diary.pieces.weighted(),
    "sentences: plain mean": lambda diary: diary.pieces.mean(),
    "sentences: mean of logits": lambda diary: diary.pieces.of_logits(),
    "sentences: mean of logits weighted by tokens": lambda diary: diary.pieces.of_weighted_logits(),
    "sentences: the surest": lambda diary: diary.pieces.surest(),
    "at once where it fits, else sentences: weighted mean": lambda diary: (
        diary.windows if diary.fits else diary.pieces
    ).weighted(),
    "windows and sentences: mean of both weighted means": lambda diary: (
        diary.windows.weighted() + diary.pieces.weighted()
    ),
    "cut at `max_len`, as predict does": lambda diary: diary.cut.first(),
}


def draw(
    rng: np.random.Generator, by_class: dict[int, np.ndarray], count: int, *, one: bool
) -> tuple[np.ndarray, int]:
    """The rows of `count` dialogues, no row twice, and the label that most of them have."""
    classes = sorted(by_class)
    while True:
        drawn = np.repeat(rng.choice(classes), count) if one else rng.choice(classes, count)
        ranked = Counter(drawn.tolist()).most_common()
        if not one and (len(ranked) < 2 or ranked[0][1] == ranked[1][1]):
            continue
        chosen = [rng.choice(by_class[label], number, replace=False) for label, number in ranked]
        rows = np.concatenate(chosen)
        rng.shuffle(rows)
        return rows, ranked[0][0]


def parts_of(
    classifier: Classifier, diaries: Sequence[str], spans: Sequence[Sequence[tuple]]
) -> list[Parts]:
    """Each diary's parts, given as (span, token ids)."""
    texts = [
        text[start:end]
        for text, mine in zip(diaries, spans, strict=True)
        for (start, end), _ in mine
    ]
    predictions = classifier.predict(texts)
    rows = np.array([[p.probabilities[name] for name in classifier.labels] for p in predictions])
    ends = np.cumsum([len(mine) for mine in spans])
    return [
        Parts(part, np.array([size for _, size in mine]))
        for part, mine in zip(np.split(rows, ends[:-1]), spans, strict=True)
    ]


def read(classifier: Classifier, count: Count, diaries: Sequence[tuple[str, int]]) -> list[Diary]:
    texts, labels = zip(*diaries, strict=True)
    limit = classifier.max_len
    pieces = [cut(text, sentences(text), count, limit) for text in texts]
    joined = [windows(text, mine, count, limit) for text, mine in zip(texts, pieces, strict=True)]
    at_once = [[((0, len(text)), 0)] for text in texts]
    kinds = [parts_of(classifier, texts, spans) for spans in (at_once, joined, pieces)]
    return list(map(Diary, labels, *kinds))


def train_classifier(
    train: Texts, held: np.ndarray, classes: list[str], params: Params, encoder: Path, folder: Path
) -> Classifier:
    """A classifier trained on the rows of `train` that `held` leaves."""
    rest = train.take(np.flatnonzero(~held))
    network, _, _ = trained(encoder, rest, train.take(np.flatnonzero(held)[:1]), params)
    save_classifier(
        network,
        folder,
        encoder=encoder,
        labels=LabelIndex(tuple(classes)),
        facts={"params": params.model_dump()},
    )
    return Classifier.load(folder, device="cpu")


def table(columns: dict[str, list[Diary]], seed: int) -> list[str]:
    """Markdown rows: the accuracy of each rule in each column, and over all diaries."""
    diaries = [diary for mine in columns.values() for diary in mine]
    ends = np.cumsum([len(mine) for mine in columns.values()])
    fitting = np.array([diary.fits for diary in diaries])
    lines = [
        f"| rule | {' | '.join(columns)} | all | difference (95% interval) | loss |",
        "| --- " * (len(columns) + 4) + "|",
    ]
    baseline = None
    for name, rule in RULES.items():
        answers = np.array([rule(diary) for diary in diaries])
        answers /= answers.sum(axis=1, keepdims=True)
        actual = np.array([diary.label for diary in diaries])
        hits = (answers.argmax(axis=1) == actual).astype(np.int64)
        loss = -np.log(np.maximum(answers[np.arange(len(actual)), actual], 1e-38)).mean()
        baseline = hits if baseline is None else baseline
        low, high = bootstrap_mean(hits - baseline, seed)
        gain = (hits - baseline).mean()
        difference = f"{100 * gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        cells = [f"{mine.mean():.3f}" for mine in np.split(hits, ends[:-1])]
        if hits is baseline:
            difference = ""
        cells += [f"{hits.mean():.3f}", difference, f"{loss:.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    shares = [f"{100 * mine.mean():.0f}%" for mine in np.split(fitting, ends[:-1])]
    lines.append(
        f"| *fit into `max_len`* | {' | '.join(shares)} | {100 * fitting.mean():.0f}% | | |"
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diaries")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, help="of Training; else all")
    parser.add_argument("--diaries", type=int, default=240, help="in each column")
    parser.add_argument("--card", type=Path, default=Path("encoders/seedling.yaml"))
    options = parser.parse_args()
    params = Params.load()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        encoder = work / "encoder"
        prepare(options.card, encoder)
        train, _, classes = read_corpus(options.folder, work, params)
        rng = np.random.default_rng(params.seed)
        if options.rows:
            train = train.take(np.sort(rng.permutation(len(train))[: options.rows]))
        tokenizer = load_tokenizer(encoder)
        tokens = tokenizer.encode(train.texts, 512)
        held = held_back(TokenArrays(tokens.ids, tokens.offsets, train.labels), HELD, params.seed)
        by_class = {
            int(label): np.flatnonzero(held & (train.labels == label))
            for label in np.unique(train.labels)
        }
        least = min(map(len, by_class.values()))
        longest = max(max(counts) for _, counts in COLUMNS.values())
        if least < longest:
            raise InputError(f"a class has {least} texts held back, and {longest} are needed")
        params = params.resolved(read_json(encoder / "card.json"), rows=int((~held).sum()))
        classifier = train_classifier(train, held, classes, params, encoder, work / "classifier")

        def count(texts: Sequence[str]) -> np.ndarray:
            return np.diff(tokenizer.encode(texts, 1 << 30).offsets)

        columns = {}
        for title, (one, counts) in COLUMNS.items():
            drawn = [
                draw(rng, by_class, counts[number % len(counts)], one=one)
                for number in range(options.diaries)
            ]
            diaries = [(" ".join(train.texts[row] for row in rows), label) for rows, label in drawn]
            columns[title] = read(classifier, count, diaries)
        trained_on = f"trained on {int((~held).sum())} rows, max_len {params.max_len}"
        print(f"{trained_on}; {options.diaries} diaries in each column\n")
        print(*table(columns, params.seed), sep="\n")


if __name__ == "__main__":
    exit_with_line(main)
