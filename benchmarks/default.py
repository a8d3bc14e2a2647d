"""How good the default is: the shipped encoder beside random weights and TF-IDF, on given rows.

    python -m benchmarks.default corpus data/sample --rows 300 600 1200 2400 3600
    python -m benchmarks.default corpus FOLDER --rows 1000 5000 20471        # any corpus folder
    python -m benchmarks.default nsmc FOLDER         # a tenth of its ratings is the test
    python -m benchmarks.default chat FOLDER         # trained on data/sample
    python -m benchmarks.default writers data/sample --set num_epochs=12 dr_rate=0.1
    python -m benchmarks.default corpus data/sample --each label_smoothing=0.1 average_last=3

In: a corpus folder, NSMC's ratings, or ChatbotData.csv.gz with the labels of docs/chat-rows.csv.
`writers` never sees Validation: three writers of Training are the test, the others the training.
Out: Markdown rows: the mean accuracy over the seeds (least to most), TF-IDF's on the same rows, and
the difference with its paired-bootstrap 95% interval over the test rows. With `--each`, instead of
that: a row for the params as they are, and one for each change of them, with its difference from
the first. Everything is trained as params.yaml says; test rows choose nothing.
"""

import argparse
import contextlib
import csv
import io
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from sklearn.metrics import f1_score
from transformers import AutoConfig, AutoModel

from pretrain.corpora import POLARITY, is_test, read_ratings, rows
from storyflower.common.errors import InputError, exit_with_line
from storyflower.common.files import json_text, read_json
from storyflower.common.params import Params
from storyflower.encoder.prepare import prepare
from storyflower.evaluate.baseline import tfidf_logistic_regression
from storyflower.evaluate.metrics import bootstrap_mean
from storyflower.ingest.ingest import ingest
from storyflower.interim.tokens import TokenArrays
from storyflower.model import scoring
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.device import Placement, choose
from storyflower.model.folder import build_classifier, need
from storyflower.tokenizer.load import load_tokenizer
from storyflower.train.fit import fit

CHAT_ROWS = Path("docs/chat-rows.csv")
RATINGS, CHAT = "ratings_train.tsv.gz", "ChatbotData.csv.gz"
WRITERS = "situations.csv"  # names the writer of each row
LEFT_OUT = ("W02", "W05", "W08")
HEADER = (
    "| rows | encoder | TF-IDF | difference (95% interval) | random weights |\n"
    "| --- | --- | --- | --- | --- |"
)
HEADER_OF_EACH = (
    "| rows | params | accuracy | macro-F1 | difference of accuracy (95% interval) |\n"
    "| --- | --- | --- | --- | --- |"
)


@dataclass
class Texts:
    texts: list[str]
    labels: np.ndarray  # (texts,) class numbers

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, chosen: np.ndarray) -> "Texts":
        return Texts([self.texts[index] for index in chosen], self.labels[chosen])


def read_corpus(folder: Path, work: Path, params: Params) -> tuple[Texts, Texts, list[str]]:
    """Training, Validation and the classes of a corpus folder."""
    table = work / "dialogues.parquet"
    ingest(
        folder,
        table,
        work / "report.json",
        turns=params.turns,
        target="major",
        max_dropped=params.max_dropped,
        text_columns=params.text_columns,
        label_column=params.label_column,
        validation_share=params.validation_share,
        seed=params.seed,
    )
    splits = [
        pq.read_table(table, filters=[("split", "==", split)])
        for split in ("Training", "Validation")
    ]
    classes = list(dict.fromkeys(splits[0]["label"].to_pylist()))
    train, test = (
        Texts(
            split["text"].to_pylist(),
            np.array([classes.index(label) for label in split["label"].to_pylist()]),
        )
        for split in splits
    )
    return train, test, classes


def read_nsmc(folder: Path) -> tuple[Texts, Texts, list[str]]:
    """NSMC's ratings without the tenth of pretrain/corpora.py, and that tenth."""
    need(folder, [RATINGS], "FOLDER must be the one with NSMC's ratings")
    ratings, classes = read_ratings(folder / RATINGS), list(POLARITY.values())
    sides = []
    for wanted in (False, True):
        mine = [row for row in ratings if is_test(row[0]) is wanted]
        labels = np.array([classes.index(polarity) for _, _, polarity in mine])
        sides.append(Texts([text for _, text, _ in mine], labels))
    return *sides, classes


def read_chat(folder: Path, classes: list[str]) -> Texts:
    """The sentences of ChatbotData that two readers gave one and the same feeling."""
    need(folder, [CHAT], "FOLDER must be the one with ChatbotData")
    need(CHAT_ROWS.parent, [CHAT_ROWS.name], "run this in the repository's root")
    questions = [question for (question,) in rows(folder / CHAT, ",", ["Q"])]
    with CHAT_ROWS.open(encoding="utf-8", newline="") as file:
        listed = [(int(row["row"]), row["label"]) for row in csv.DictReader(file)]
    return Texts(
        [questions[row - 1] for row, _ in listed],
        np.array([classes.index(label) for _, label in listed]),
    )


def leave_out(folder: Path, train: Texts) -> tuple[Texts, Texts]:
    """Training without the rows of LEFT_OUT's writers, and those rows."""
    need(folder, [WRITERS], "FOLDER must be one whose writers are known, such as data/sample")
    with (folder / WRITERS).open(encoding="utf-8", newline="") as file:
        writers = [row["작가"] for row in csv.DictReader(file) if row["split"] == "Training"]
    if len(writers) != len(train):
        raise InputError(f"{folder / WRITERS}: {len(writers)} rows, but Training has {len(train)}")
    out = np.isin(writers, LEFT_OUT)
    return train.take(np.flatnonzero(~out)), train.take(np.flatnonzero(out))


def random_weights(encoder: Path, work: Path) -> Path:
    """The encoder's folder with weights as its config draws them."""
    folder = work / "random"
    if not folder.exists():
        folder.mkdir()
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(encoder)
        AutoModel.from_config(config, add_pooling_layer=False).float().save_pretrained(folder)
        for name in ("spiece.model", "card.json"):
            (folder / name).write_bytes((encoder / name).read_bytes())
    return folder


def trained(
    encoder: Path, train: Texts, test: Texts, params: Params
) -> tuple[EmotionClassifier, TokenArrays, Placement]:
    """A classifier trained on `train`, the token arrays of `test`, and where both are computed."""
    tokenizer = load_tokenizer(encoder)
    arrays = []
    for side in (train, test):
        tokens = tokenizer.encode(side.texts, params.max_len)
        arrays.append(TokenArrays(tokens.ids, tokens.offsets, side.labels))
    torch.manual_seed(params.seed)
    network = build_classifier(encoder, int(train.labels.max()) + 1, params.dr_rate)
    placement = choose(params.device, params.precision)
    with contextlib.redirect_stdout(io.StringIO()):
        fit(
            network,
            train=arrays[0],
            test=arrays[1],
            params=params,
            placement=placement,
            on_epoch=lambda _: None,
            mask_id=tokenizer.mask_id,
        )
    return network, arrays[1], placement


def answers(
    encoder: Path, train: Texts, test: Texts, params: Params, seeds: int = 1
) -> list[np.ndarray]:
    """For each seed, the class (test,) that a classifier answers that was trained on `train`."""
    found = []
    for number in range(seeds):
        seeded = params.model_copy(update={"seed": params.seed + number})
        network, tokens, placement = trained(encoder, train, test, seeded)
        found.append(scoring.probabilities(network, tokens, placement).argmax(axis=1))
    return found


def compare(
    train: Texts,
    test: Texts,
    params: Params,
    encoder: Path,
    work: Path,
    options: argparse.Namespace,
) -> None:
    """Print one row of the table."""
    params = params.resolved(read_json(encoder / "card.json"), rows=len(train))
    by_seed = [
        found == test.labels for found in answers(encoder, train, test, params, options.seeds)
    ]
    probability = tfidf_logistic_regression(
        train.texts, train.labels, test.texts, int(train.labels.max()) + 1
    )
    baseline = probability.argmax(axis=1) == test.labels
    accuracies = [mine.mean() for mine in by_seed]
    random = ""
    if not options.no_random:
        (found,) = answers(random_weights(encoder, work), train, test, params)
        random = spread([(found == test.labels).mean()])
    gain = gained(np.mean(by_seed, axis=0) - baseline, params.seed)
    print(
        f"| {len(train)} | {spread(accuracies)} | {baseline.mean():.3f} | {gain} | {random} |",
        flush=True,
    )


def compare_each(
    train: Texts, test: Texts, params: Params, encoder: Path, options: argparse.Namespace
) -> None:
    """Print a row for the params as they are, and one for each change in `options.each`."""
    plain = None
    for name, changed in [("as they are", params), *each(params, options.each)]:
        resolved = changed.resolved(read_json(encoder / "card.json"), rows=len(train))
        found = answers(encoder, train, test, resolved, options.seeds)
        by_seed = [mine == test.labels for mine in found]
        right = np.mean(by_seed, axis=0)  # (test,)
        plain = right if plain is None else plain
        scores = [f1_score(test.labels, mine, average="macro", zero_division=0) for mine in found]
        gain = "" if right is plain else gained(right - plain, params.seed)
        print(
            f"| {len(train)} | {name} | {spread([mine.mean() for mine in by_seed])} | "
            f"{spread(scores)} | {gain} |",
            flush=True,
        )


def each(params: Params, changes: list[str]) -> list[tuple[str, Params]]:
    """(change, the params so changed) of each KEY=VALUE,KEY=VALUE; raises InputError."""
    return [
        (change, set_values(params, map(pair, change.split(",")), "--each")) for change in changes
    ]


def set_values(params: Params, pairs: Iterable[tuple[str, str]], where: str) -> Params:
    values = {key: yaml.safe_load(value) for key, value in pairs}
    return Params.check({**params.model_dump(), **values}, where)


def gained(gains: np.ndarray, seed: int) -> str:
    """The mean of what each test row gains, (test,), and its 95% interval, in points."""
    low, high = bootstrap_mean(gains, seed)
    return f"{100 * gains.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def spread(values: Sequence[float]) -> str:
    """The mean, and where there are several the least and the most."""
    several = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{several}"


def pair(word: str) -> tuple[str, str]:
    key, sign, value = word.partition("=")
    if not sign:
        raise InputError(f"{word!r} is not KEY=VALUE")
    return key, value


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.default")
    parser.add_argument("what", choices=["corpus", "nsmc", "chat", "writers"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", help="of Training; else all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--each", nargs="+", default=[], metavar="KEY=VALUE[,KEY=VALUE]")
    parser.add_argument("--pooling", choices=["first", "mean"], help="else as the card says")
    parser.add_argument("--card", type=Path, default=Path("encoders/seedling.yaml"))
    parser.add_argument("--no-random", action="store_true")
    options = parser.parse_args()
    params = set_values(Params.load(), map(pair, options.set), "--set")
    each(params, options.each)  # a mistake is said before anything is trained
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        encoder = work / "encoder"
        prepare(options.card, encoder)
        if options.pooling:
            card = read_json(encoder / "card.json") | {"pooling": options.pooling}
            (encoder / "card.json").write_text(json_text(card), encoding="utf-8")
        if options.what == "nsmc":
            train, test, _ = read_nsmc(options.folder)
        else:
            corpus = Path("data/sample") if options.what == "chat" else options.folder
            train, test, classes = read_corpus(corpus, work, params)
        if options.what == "chat":
            test = read_chat(options.folder, classes)
        if options.what == "writers":
            train, test = leave_out(options.folder, train)
        print(f"{len(test)} test rows\n")
        print(HEADER_OF_EACH if options.each else HEADER, flush=True)
        order = np.random.default_rng(params.seed).permutation(len(train))
        for count in options.rows or [len(train)]:
            # In the order of the file, as ingest would have read them
            chosen = train.take(np.sort(order[:count]))
            if options.each:
                compare_each(chosen, test, params, encoder, options)
            else:
                compare(chosen, test, params, encoder, work, options)


if __name__ == "__main__":
    exit_with_line(main)
