"""Texts that a model of any size can learn, and what a pretraining wrote."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pretrain.recipe import Recipe
from pretrain.texts import NO_LABEL, Texts

RECIPE = Recipe(
    steps=60, pieces=200, layers=1, hidden=32, heads=2, batch_tokens=512, rate=5e-3, warmup=10,
    precision="fp32",
)  # fmt: skip
NOUNS = {"밥": ("먹었다", "지었다"), "책": ("읽었다", "썼다"), "노래": ("불렀다", "들었다")}


def sentences(count: int) -> list[str]:
    """Sentences in which each word says much about the others."""
    rng = random.Random(0)
    nouns = [rng.choice(list(NOUNS)) for _ in range(count)]
    return [
        f"{number % 97}번 {noun} {noun} {rng.choice(NOUNS[noun])}"
        for number, noun in enumerate(nouns)
    ]


def some_texts(labelled: bool = True) -> Texts:
    texts = Texts(label_of=dict.fromkeys(sentences(600), NO_LABEL))
    if labelled:
        texts.classes = {"noun": {noun: number for number, noun in enumerate(NOUNS)}}
        for text in list(texts.label_of)[1:]:  # nearly all, so that some are held out
            texts.label_of[text] = texts.classes["noun"][text.split()[1]]
    return texts


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, Any]:
    """What a pretraining wrote, without the seconds that it took."""
    found: dict[str, Any] = files(folder)
    found["pretraining.json"] = document = json.loads(found["pretraining.json"])
    for row in document["epochs"]:
        del row["seconds"]
    return found


def epochs_of(folder: Path) -> list[dict]:
    """The rows of pretraining.json, which must hold no NaN."""
    text = (folder / "pretraining.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=pytest.fail)["epochs"]
