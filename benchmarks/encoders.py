"""How long a training step takes with each card's encoder, beside KoBERT's, on this machine.

    python -m benchmarks.encoders --only kcelectra-v2022 mmbert

In: the cards, for their pooling. An encoder has random weights in the shape that its config.json
on the hub says (SHAPES), so nothing is downloaded.
Out: a row for each card: family, parameters, forward pass, milliseconds of a step (forward,
backward, update), and how many times KoBERT's that is, step for step on texts of the same lengths.
The lengths are those of the corpus in KoBERT's ids (speed.random_table). What another vocabulary
makes of a text is not measured; nor is the accuracy.
"""

import argparse
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.utils import logging

from benchmarks.peers import Ours
from benchmarks.speed import params_of, random_table, spread, sync
from storyflower.common.errors import InputError, exit_with_line
from storyflower.encoder.card import Card
from storyflower.interim.tokens import TokenArrays
from storyflower.model.device import Placement, choose
from storyflower.model.forward import UNPADDED

CARDS = Path("encoders")
BESIDE = "kobert"
SPECIAL = 5  # ids below are special tokens
DROPOUT = 0.5
MEAN, WIDTH = 35.7, 64  # ids of a dialogue, as in benchmarks/speed.py
COUNTED = 2  # steps of a round, after one that is not counted
TOY = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@dataclass(frozen=True)
class Shape:
    """An encoder without its weights."""

    family: str  # model_type in config.json
    sizes: dict[str, Any]  # other keys of config.json

    @property
    def config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(self.family, **self.sizes)

    @property
    def forward_pass(self) -> str:
        return "unpadded" if self.family in UNPADDED else "padded"

    @property
    def parameters(self) -> int:
        with torch.device("meta"):
            return AutoModel.from_config(self.config).num_parameters()


def shape(family: str, vocab_size: int, sizes: dict[str, Any], **more: Any) -> Shape:
    return Shape(family, {"vocab_size": vocab_size, **sizes, **more})


BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
HALF = {**BASE, "num_hidden_layers": 6}
FROM_PAD = {"pad_token_id": 1, "type_vocab_size": 1, "max_position_embeddings": 514}
DEBERTA = {
    **BASE,
    "type_vocab_size": 0,
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
}
MODERN = {
    **BASE,
    "num_hidden_layers": 22,
    "intermediate_size": 1152,
    "max_position_embeddings": 8192,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    **dict.fromkeys(("cls_token_id", "sep_token_id"), 0),
}
KOBERT = shape("bert", 8002, BASE, pad_token_id=1)
BGE_M3 = shape("xlm-roberta", 250_002, LARGE, **{**FROM_PAD, "max_position_embeddings": 8194})
SHAPES = {
    "seedling": shape(
        "bert", 8000, BASE, hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=1024,
    ),
    "kobert": KOBERT,
    "kobert-legacy": KOBERT,
    "kobert-monologg": KOBERT,
    "distilkobert": Shape(
        "distilbert",
        {"vocab_size": 8002, "dim": 768, "n_layers": 3, "n_heads": 12, "hidden_dim": 3072},
    ),
    "kcbert": shape("bert", 30_000, BASE, max_position_embeddings=300),
    "klue-bert": shape("bert", 32_000, BASE),
    "kykim-bert": shape("bert", 42_000, BASE),
    "klue-roberta-small": shape("roberta", 32_000, HALF, **FROM_PAD),
    "klue-roberta": shape("roberta", 32_000, BASE, **FROM_PAD),
    "klue-roberta-large": shape("roberta", 32_000, LARGE, **FROM_PAD),
    "koelectra-small": shape(
        "electra", 35_000, BASE, embedding_size=128, hidden_size=256, num_attention_heads=4,
        intermediate_size=1024,
    ),
    "koelectra": shape("electra", 35_000, BASE, embedding_size=768),
    "kcelectra": shape("electra", 30_000, BASE, embedding_size=768),
    "kcelectra-v2022": shape("electra", 54_343, BASE, embedding_size=768),
    "kf-deberta": shape("deberta-v2", 130_000, DEBERTA),
    "deberta-v3-korean": shape("deberta-v2", 64_100, DEBERTA),
    "ax-encoder": shape("modernbert", 50_000, MODERN, max_position_embeddings=16_384),
    "mmbert": shape("modernbert", 256_000, MODERN),
    "bge-m3": BGE_M3,
    "kure": BGE_M3,
}  # fmt: skip


def toy(big: Shape) -> Shape:
    """A tiny encoder of the same family, to see that it runs."""
    names = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "embedding_size": 16}
    small = {key: value for key, value in {**TOY, **names}.items() if key in big.sizes}
    return replace(big, sizes={**big.sizes, **small})


def with_vocabulary(table: TokenArrays, size: int) -> TokenArrays:
    """The same lengths with ids that a vocabulary of this size has."""
    ids = table.ids.astype(np.int32) % (size - SPECIAL) + SPECIAL  # they may be uint16
    return TokenArrays(ids, table.offsets, table.labels)


def loop(name: str, made: Shape, batch: int, placement: Placement) -> Ours:
    params = params_of(num_epochs=1, batch_size=batch, max_len=WIDTH)
    pooling = Card.load(CARDS / f"{name}.yaml").pooling
    return Ours(made.config, params, DROPOUT, placement, pooling)


def measure(
    names: list[str], shapes: dict[str, Shape], *, batch: int, rounds: int, placement: Placement
) -> dict[str, dict[str, Any]]:
    """Seconds of a step and its ratio to KoBERT's, for each card; the two take turns."""
    beside = loop(BESIDE, shapes[BESIDE], batch, placement)
    figures = {}
    for name in names:
        loops = [
            (beside, shapes[BESIDE]),
            (loop(name, shapes[name], batch, placement), shapes[name]),
        ]
        seconds: list[list[float]] = []
        for turn in range(rounds):
            table = random_table(batch * (COUNTED + 1), MEAN, WIDTH, seed=turn)
            batches = list(np.arange(batch * (COUNTED + 1)).reshape(COUNTED + 1, batch))
            seconds.append([])
            for each, made in loops:
                fitting = with_vocabulary(table, made.sizes["vocab_size"])
                taken = each.run(fitting, batches, sync(placement)).seconds[1:]
                seconds[-1].append(statistics.mean(taken))
        figures[name] = {
            "seconds": statistics.median(own for _, own in seconds),
            "ratio": spread([own / kobert for kobert, own in seconds]),
        }
        print(row(name, shapes[name], figures[name]), flush=True)
    return figures


def row(name: str, made: Shape, figures: dict[str, Any]) -> str:
    """A card's row of the table in docs/encoders.md, as far as it is measured."""
    ratio = "{median:.2f} ({min:.2f} to {max:.2f})".format(**figures["ratio"])
    millions = f"{made.parameters / 1e6:.0f} M"
    step = f"{figures['seconds'] * 1000:.0f} ms"
    return f"| `{name}` | {made.family} | {millions} | {made.forward_pass} | {step} | {ratio} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="CARD", help="these cards; else all")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--toy", action="store_true", help="tiny encoders, to see that it runs")
    options = parser.parse_args()
    logging.set_verbosity_error()
    names = options.only or list(SHAPES)
    for name in names:
        if name not in SHAPES:
            raise InputError(f"--only: {name!r} has no shape here; known: {', '.join(SHAPES)}")
    shapes = {key: toy(value) for key, value in SHAPES.items()} if options.toy else SHAPES
    placement = choose(options.device, options.precision)
    print(f"{placement}, {torch.get_num_threads()} threads, batches of {options.batch_size}\n")
    print("| card | family | parameters | forward pass | a step | beside KoBERT's |")
    print("| --- | --- | --- | --- | --- | --- |")
    measure(names, shapes, batch=options.batch_size, rounds=options.rounds, placement=placement)


if __name__ == "__main__":
    exit_with_line(main)
