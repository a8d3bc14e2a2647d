"""A card → a verified encoder folder with its tokenizer.

In: a card, encoders/<name>.yaml, its lock beside it if it has one, and the table of dialogues.
Out: a folder in the from_pretrained format with the tokenizer's files and card.json. Four kinds
of card: `scratch` makes a SentencePiece vocabulary from the Training texts and a small BERT with
random weights; `hub` names a repository of the Hugging Face hub, `url` files with their
checksums, `path` a folder.
"""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from storyflower.common.errors import InputError
from storyflower.common.files import json_text, read_json, replacing
from storyflower.encoder.card import VOCABULARY, Card, Lock
from storyflower.encoder.pretrained import load_body, read_weights
from storyflower.encoder.scratch import draw_weights, train_vocabulary
from storyflower.encoder.sources import (
    HubFolder,
    LocalFolder,
    Source,
    UrlFolder,
    digest,
    matches,
)
from storyflower.encoder.verify import check_golden, max_length, verify

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there


def prepare(card_file: Path, table: Path, output: Path, *, seed: int) -> Card:
    """Make, or fetch and verify, the encoder that a card names; write it to `output`.

    Returns the card, completed with what its source says. `output` appears whole or not at all; the
    work is done beside it. Warns on stderr when the card is not locked. Raises InputError when the
    card, its source, or their fit is wrong.
    """
    card = Card.load(card_file)
    with replacing() as beside:
        folder = beside(output)
        folder.mkdir()
        if card.kind == "scratch":
            train_vocabulary(card, table, folder / "spiece.model", seed=seed)
            draw_weights(card, folder, seed=seed)
            pinned: dict[str, Any] = {}
        else:
            pin = Lock.load(card_file, card)
            card, pinned = take_over(card_file, card, pin, folder)
            if pin is None and card.kind != "path":
                report_unlocked(card_file, card, pinned)
        card = verify(folder, card)
        document = {"name": card_file.stem, **asdict(card), **pinned}
        document["max_length"] = max_length(folder)
        (folder / "card.json").write_text(json_text(document), encoding="utf-8")
    return card


def take_over(
    card_file: Path, card: Card, lock: Lock | None, folder: Path
) -> tuple[Card, dict[str, Any]]:
    """Fetch what a card names; write its vocabulary and, as float32 safetensors, its weights.

    Returns the card with its tokenizer's kind, and what was taken: the revision and the sha256 of
    each file. Nothing is read before it has passed the lock.
    """
    unpacked = folder / "unpacked"
    source = open_source(card_file, card, lock, unpacked)

    def find(name: str) -> Path | None:
        # A lock names all that was there; nothing else is looked for, so nothing asks the network.
        if lock is not None and card.kind != "url" and name not in lock.files:
            return None
        return source.find(name)

    def first(*names: str) -> Path:
        for name in names:
            if path := find(name):
                return path
        raise InputError(f"{card.source}: has no {' or '.join(names)}")

    config = first("config.json")
    if card.tokenizer is None:
        vocabulary = first(card.vocabulary) if card.vocabulary else first(*VOCABULARY.values())
        kind = "wordpiece" if vocabulary.suffix == ".txt" else "sentencepiece"
        card = replace(card, tokenizer=kind)
    else:
        vocabulary = first(card.vocabulary or VOCABULARY[card.tokenizer])
    settings = None
    if card.tokenizer == "wordpiece":
        settings = find("tokenizer_config.json")  # whether it lower-cases, among others
    elif card.pretokenize is None:
        card = replace(card, pretokenize="none")
    weights = first(*WEIGHTS)

    check_lock(card_file, lock, source)
    shutil.copyfile(vocabulary, folder / VOCABULARY[card.tokenizer])
    if settings:
        shutil.copyfile(settings, folder / "tokenizer_config.json")
    body = load_body(card, read_json(config), read_weights(card, weights), folder)
    body.save_pretrained(folder)
    if lock is not None:
        check_golden(folder, card, lock.golden)
    files = {name: digest(path, "sha256") for name, path in sorted(source.files.items())}
    shutil.rmtree(unpacked, ignore_errors=True)  # nothing was, or it is an archive's content
    return card, {"revision": source.revision, "files": files}


def open_source(card_file: Path, card: Card, lock: Lock | None, unpacked: Path) -> Source:
    if card.kind == "hub":
        return HubFolder(card.source, lock.revision if lock else card.revision)
    if card.kind == "url":
        return UrlFolder(card.source, card.files, unpacked)
    return LocalFolder(card_file.parent / card.source)


def check_lock(card_file: Path, lock: Lock | None, source: Source) -> None:
    """Raise InputError unless each file is the one that was locked."""
    for name, path in source.files.items() if lock else ():
        if name not in lock.files or not matches(path, lock.files[name]):
            raise InputError(
                f"{path.resolve()}: {digest(path, 'sha256')}, but {Lock.beside(card_file)} says "
                f"{lock.files.get(name)}; if it is damaged, delete it and run again; if the source "
                f"has changed: python -m storyflower lock {card_file.stem}"
            )


def report_unlocked(card_file: Path, card: Card, pinned: Mapping[str, Any]) -> None:
    revision = f" at {pinned['revision']}" if pinned["revision"] else ""
    # The whole checksums stand in card.json.
    files = ", ".join(f"{name} {checksum[:19]}…" for name, checksum in pinned["files"].items())
    print(
        f"WARNING: {card_file} is not locked, so its source may change unseen; got {card.source}"
        f"{revision}: {files}. Pin it: python -m storyflower lock {card_file.stem}",
        file=sys.stderr,
    )
