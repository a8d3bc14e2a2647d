"""How good the default is: the shipped encoder beside random weights and TF-IDF, on given rows.

    python -m benchmarks.default corpus data/sample --rows 300 600 1200 2400 3600
    python -m benchmarks.default corpus FOLDER --rows 1000 5000 20471        # any corpus folder
    python -m benchmarks.default nsmc FOLDER         # a tenth of its ratings is the test
    python -m benchmarks.default chat FOLDER         # trained on data/sample

In: a corpus folder, NSMC's ratings, or ChatbotData.csv.gz with the labels of docs/chat-rows.csv.
Out: Markdown rows: the mean accuracy over the seeds (least to most), TF-IDF's on the same rows, and
the difference with its paired-bootstrap 95% interval over the test rows. Everything is trained as
params.yaml says; test rows choose nothing.
"""

import argparse
import contextlib
import csv
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoModel

from pretrain.corpora import POLARITY, is_test, read_ratings, rows
from storyflower.common.errors import exit_with_line
from storyflower.common.files import read_json
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
HEADER = (
    "| rows | encoder | TF-IDF | difference (95% interval) | random weights |\n"
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


def read_corpus(folder: Path, work: Path, turns: int) -> tuple[Texts, Texts, list[str]]:
    """Training, Validation and the classes of a corpus folder."""
    table = work / "dialogues.parquet"
    ingest(folder, table, work / "report.json", turns=turns, target="major", max_dropped=0.05)
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


def right(encoder: Path, train: Texts, test: Texts, params: Params) -> np.ndarray:
    """bool (test,): what a classifier gets right that was trained on `train`."""
    network, tokens, placement = trained(encoder, train, test, params)
    return scoring.probabilities(network, tokens, placement).argmax(axis=1) == test.labels


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
        right(encoder, train, test, params.model_copy(update={"seed": params.seed + number}))
        for number in range(options.seeds)
    ]
    probability = tfidf_logistic_regression(
        train.texts, train.labels, test.texts, int(train.labels.max()) + 1
    )
    baseline = probability.argmax(axis=1) == test.labels
    accuracies = [mine.mean() for mine in by_seed]
    gains = np.mean(by_seed, axis=0) - baseline
    low, high = bootstrap_mean(gains, params.seed)
    random = (
        ""
        if options.no_random
        else spread([right(random_weights(encoder, work), train, test, params).mean()])
    )
    print(
        f"| {len(train)} | {spread(accuracies)} | {baseline.mean():.3f} | "
        f"{100 * gains.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) | {random} |",
        flush=True,
    )


def spread(values: Sequence[float]) -> str:
    """The mean, and where there are several the least and the most."""
    several = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{several}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.default")
    parser.add_argument("what", choices=["corpus", "nsmc", "chat"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", help="of Training; else all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="else as params.yaml says")
    parser.add_argument("--card", type=Path, default=Path("encoders/seedling.yaml"))
    parser.add_argument("--no-random", action="store_true")
    options = parser.parse_args()
    params = Params.load()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        encoder = work / "encoder"
        prepare(options.card, encoder)
        if options.epochs:
            params = params.model_copy(update={"num_epochs": options.epochs})
        if options.what == "nsmc":
            train, test, _ = read_nsmc(options.folder)
        else:
            corpus = options.folder if options.what == "corpus" else Path("data/sample")
            train, test, classes = read_corpus(corpus, work, params.turns)
        if options.what == "chat":
            test = read_chat(options.folder, classes)
        print(f"{len(test)} test rows\n")
        print(HEADER, flush=True)
        order = np.random.default_rng(params.seed).permutation(len(train))
        for count in options.rows or [len(train)]:
            # In the order of the file, as ingest would have read them
            compare(train.take(np.sort(order[:count])), test, params, encoder, work, options)


if __name__ == "__main__":
    exit_with_line(main)
