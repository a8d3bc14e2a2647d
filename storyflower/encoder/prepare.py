"""A card → a verified encoder folder with its tokenizer.

In: a card, encoders/<name>.yaml, and the lock beside it if there is one.
Out: a folder in the from_pretrained format with the tokenizer's files and card.json. There are two
kinds of card: `hub` names a repository on the Hugging Face hub, `path` a folder beside the card.
Not supported: an encoder in any other format, such as ONNX or TensorFlow.
"""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from storyflower.common.errors import InputError
from storyflower.common.files import json_text, read_json, replacing
from storyflower.encoder.card import VOCABULARY, Card, Lock
from storyflower.encoder.pretrained import load_body, read_weights
from storyflower.encoder.sources import CheckedSource
from storyflower.encoder.trial import try_out
from storyflower.encoder.verify import check_added, check_golden, max_length, verify
from storyflower.interim.tokens import SETTINGS
from storyflower.model.folder import read_encoder
from storyflower.tokenizer.load import load_tokenizer

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first one that exists is used
# Its ids are not those of the encoder, but shifted by one, with other special tokens before them.
SHIFTED = "sentencepiece.bpe.model"


def prepare(card_file: Path, output: Path) -> Card:
    """Fetch and verify the encoder that a card names; write it to `output`.

    Returns the card, completed from its source. `output` appears whole or not at all; the work is
    done beside it. Warns on stderr if a hub card is not locked. Raises InputError if the card or
    its source is wrong, or if they do not fit together.
    """
    card = Card.load(card_file)
    with replacing() as beside:
        folder = beside(output)
        folder.mkdir()
        pin = Lock.load(card_file, card)
        card, pinned = take_over(card_file, card, pin, folder)
        if pin is None and card.kind != "path":
            report_unlocked(card_file, card, pinned)
        card = verify(folder, card)
        document = {"name": card_file.stem, **card.model_dump(), **pinned}
        body = read_encoder(folder)  # what was written, as train will read it
        try_out(body, card)
        document["max_length"] = max_length(body)
        document["mask_id"] = load_tokenizer(folder, card.model_dump()).mask_id
        (folder / "card.json").write_text(json_text(document), encoding="utf-8")
    return card


def take_over(
    card_file: Path, card: Card, lock: Lock | None, folder: Path
) -> tuple[Card, dict[str, Any]]:
    """Fetch what a card names; write the vocabulary, and the weights as float32 safetensors.

    Returns the card with its tokenizer's kind, and what was fetched: the revision and the sha256 of
    each file. No file is read before it is checked against the lock. Raises InputError.
    """
    source = CheckedSource(card_file, card, lock)
    find = source.find
    unpacked = folder / "unpacked"
    if card.files:
        find = source.find_all(card.files, unpacked).get

    def first(*names: str) -> Path:
        for name in names:
            if path := find(name):
                return path
        raise InputError(f"{card.source}: has no {either(names)}")

    config = first("config.json")
    card, vocabulary = choose_vocabulary(card, first)
    weights = first(*WEIGHTS)
    shutil.copyfile(vocabulary, folder / VOCABULARY[card.tokenizer])
    for name in SETTINGS[card.tokenizer]:
        source.check_folder(name)
        if settings := find(name):
            read_object(card, settings)
            shutil.copyfile(settings, folder / name)
    body = load_body(card, read_object(card, config), read_weights(card, weights), folder)
    body.save_pretrained(folder)
    if card.tokenizer == "wordpiece":
        check_added(folder, card, find)
    if lock is not None:
        check_golden(folder, card, lock.golden)
    shutil.rmtree(unpacked, ignore_errors=True)
    return card, {"revision": source.revision, "files": dict(sorted(source.taken.items()))}


def read_object(card: Card, path: Path) -> dict[str, Any]:
    """A JSON file's object; raises InputError for anything else."""
    if not isinstance(content := read_json(path), dict):
        raise InputError(f"{card.source}: {path.name}: not a JSON object")
    return content


def choose_vocabulary(card: Card, first: Callable[..., Path]) -> tuple[Card, Path]:
    """The card with its tokenizer's kind, and the path of the vocabulary.

    If the card does not name a tokenizer, the vocabulary's suffix decides. `first` returns the path
    of the first of the given names that exists. Raises InputError.
    """
    names = VOCABULARY.values() if card.tokenizer is None else [VOCABULARY[card.tokenizer]]
    vocabulary = first(card.vocabulary) if card.vocabulary else first(*names)
    if vocabulary.name == SHIFTED:
        raise InputError(
            f"{card.source}: the ids of {SHIFTED} are not the encoder's; say tokenizer: "
            "tokenizer.json on the card, and leave vocabulary out"
        )
    by_name = {".txt": "wordpiece", ".json": "tokenizer.json"}.get(vocabulary.suffix)
    tokenizer, pretokenize = card.tokenizer or by_name or "sentencepiece", card.pretokenize
    if tokenizer != "sentencepiece" and pretokenize:
        raise InputError(f"{card.source}: has {vocabulary.name}: leave pretokenize out of the card")
    if tokenizer == "sentencepiece":
        pretokenize = pretokenize or "none"
    return card.model_copy(update={"tokenizer": tokenizer, "pretokenize": pretokenize}), vocabulary


def either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def report_unlocked(card_file: Path, card: Card, pinned: Mapping[str, Any]) -> None:
    revision = f" at {pinned['revision']}" if pinned["revision"] else ""
    # Shortened here; card.json has the full checksums.
    files = ", ".join(f"{name} {checksum[:19]}…" for name, checksum in pinned["files"].items())
    print(
        f"WARNING: {card_file} is not locked, so its source may change unseen; got {card.source}"
        f"{revision}: {files}. Pin it: python -m storyflower lock {card_file.stem}",
        file=sys.stderr,
    )
