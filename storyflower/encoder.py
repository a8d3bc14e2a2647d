"""A card → a verified encoder folder with its tokenizer.

Enters: a card, encoders/<name>.yaml, its lock beside it if it has one, and the table of dialogues.
Leaves: a folder in the from_pretrained format with the tokenizer's files and card.json. Four kinds
of card: `scratch` makes a SentencePiece vocabulary from the Training texts and a small BERT with
random weights; `hub` names a repository of the Hugging Face hub, `url` files with their checksums,
`path` a folder.

Given up: code that comes with a checkpoint (neither fetched nor run), pickled objects (of a .bin
file only tensors are read), weights in several files, families other than FAMILIES.
"""

import argparse
import io
import pickle
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyflower import dialogues
from storyflower.card import VOCABULARY, Card, Lock, write_card
from storyflower.documents import json_text, replacing
from storyflower.errors import InputError, exit_with_line
from storyflower.fetch import HubFolder, LocalFolder, Source, UrlFolder, digest, first_line, matches
from storyflower.tokenizer import basic_tokenize, load_tokenizer, read_json

if TYPE_CHECKING:
    import torch

SPECIAL = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")  # KoBERT's ids 0..4
FAMILIES = ("bert", "roberta", "electra", "distilbert")  # model_type in config.json
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there
MAX_SENTENCES = 100_000  # texts that the SentencePiece trainer sees, at about 2 kB each
SPARE_ROWS = 128  # some embeddings are padded to a multiple of this; more is another vocabulary
GOLDEN_TEXT = "한국어 모델을 공유합니다."  # from KoBERT's README
GOLDEN_LENGTH = 512  # ids, at most


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


def train_vocabulary(card: Card, table: Path, output: Path, *, seed: int) -> None:
    """Train a SentencePiece unigram model on the Training texts, KoBERT's special pieces first."""
    import sentencepiece

    sentencepiece.set_random_generator_seed(seed)
    vocabulary = io.BytesIO()  # a full disk it would not report, and leave an empty file
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=training_texts(table, card.pretokenize),
            model_writer=vocabulary,
            model_type="unigram",
            vocab_size=card.vocab_size,
            hard_vocab_limit=False,  # a small corpus does not have that many pieces
            unk_id=0,
            pad_id=1,
            bos_id=2,
            eos_id=3,
            unk_piece=SPECIAL[0],
            pad_piece=SPECIAL[1],
            bos_piece=SPECIAL[2],
            eos_piece=SPECIAL[3],
            control_symbols=SPECIAL[4],
            input_sentence_size=MAX_SENTENCES,
            shuffle_input_sentence=True,
            num_threads=1,  # the sums, and so the pieces, depend on the number of threads
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(
            f"{table}: too little text for a vocabulary ({' '.join(str(error).split())[-120:]})"
        ) from None
    output.write_bytes(vocabulary.getvalue())


def training_texts(table: Path, pretokenize: str | None) -> Iterator[str]:
    """The Training texts, or as many of them, evenly spread, as the trainer takes."""
    every = -(-dialogues.count(table, "Training") // MAX_SENTENCES)
    for text in dialogues.texts(table, "Training", every):
        # The pieces are for words as the tokenizer will cut them.
        yield " ".join(basic_tokenize(text)) if pretokenize == "bert" else text


def draw_weights(card: Card, output: Path, *, seed: int) -> None:
    """Write a randomly initialised BERT of the card's shape."""
    import torch
    from transformers import BertConfig, BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=load_tokenizer(output, asdict(card)).vocab_size,
        num_hidden_layers=card.layers,
        hidden_size=card.hidden_size,
        num_attention_heads=card.heads,
        intermediate_size=card.intermediate_size,
        pad_token_id=SPECIAL.index("[PAD]"),
    )
    BertModel(config).save_pretrained(output)


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
                f"has changed: python -m storyflower.encoder lock {card_file.stem}"
            )


def report_unlocked(card_file: Path, card: Card, pinned: Mapping[str, Any]) -> None:
    revision = f" at {pinned['revision']}" if pinned["revision"] else ""
    # The whole checksums stand in card.json.
    files = ", ".join(f"{name} {checksum[:19]}…" for name, checksum in pinned["files"].items())
    print(
        f"WARNING: {card_file} is not locked, so its source may change unseen; got {card.source}"
        f"{revision}: {files}. Pin it: python -m storyflower.encoder lock {card_file.stem}",
        file=sys.stderr,
    )


def read_weights(card: Card, path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a checkpoint by name; raises InputError for anything else in it."""
    import safetensors
    import safetensors.torch
    import torch

    where = f"{card.source}: {path.name}"
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{where}: refused: damaged, or holds objects that could run code"
        ) from None
    except (safetensors.SafetensorError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"{where}: damaged ({first_line(error)})") from None
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise InputError(f"{where}: holds more than named tensors")
    return weights


def load_body(
    card: Card, settings: dict[str, Any], weights: "dict[str, torch.Tensor]", folder: Path
) -> Any:
    """The encoder of a checkpoint, float32, without its pretraining head; raises InputError.

    `folder` holds the vocabulary. A checkpoint without a pooler gets none: one with random weights
    would pass for pretrained, and the first token's last hidden state is what was trained.
    """
    import torch
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_MAPPING
    from transformers.utils import logging

    family = model_type(card, settings)
    pad_id = pad_token(card, settings, family, folder)
    settings = {**settings, "pad_token_id": pad_id}
    for key in ("model_type", "auto_map"):  # auto_map names code
        settings.pop(key, None)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it reports the pretraining head that is left behind
    try:
        config = AutoConfig.for_model(family, **settings)
        body, report = MODEL_MAPPING[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported, and judged below
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds for a config that makes no sense
        raise InputError(f"{card.source}: config.json: {first_line(error)}") from None
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise InputError(
            f"{card.source}: {name} is {shape(found)}, but config.json asks for {shape(expected)}"
        )
    missing = sorted(report["missing_keys"])
    if missing and all(name.startswith("pooler.") for name in missing):
        body.pooler = None
    elif missing:
        raise InputError(
            f"{card.source}: the weights lack {missing[0]} and {len(missing) - 1} more"
        )
    return body


def model_type(card: Card, settings: Mapping[str, Any]) -> str:
    """The family that config.json names; raises InputError unless it is one of FAMILIES."""
    named = settings.get("model_type")
    if named is None:
        # Older than the key: the class says it, and before that there was BERT alone.
        known = str((settings.get("architectures") or ["bert"])[0]).lower()
        named = next((family for family in FAMILIES if known.startswith(family)), known)
    if named not in FAMILIES:
        raise InputError(
            f"{card.source}: a model of type {named!r}; those that work: {', '.join(FAMILIES)}"
        )
    return named


def pad_token(card: Card, settings: Mapping[str, Any], family: str, folder: Path) -> int:
    """The id of [PAD], on which card, vocabulary and config.json must agree; raises InputError.

    A config.json of old says 0, or nothing, for a vocabulary whose [PAD] is 1 (SKTBrain/KoBERT
    #36): there the card decides. RoBERTa counts positions from it, so there it must be right.
    """
    pad_id = load_tokenizer(folder, asdict(card)).pad_id
    if card.pad_id not in (None, pad_id):
        raise InputError(
            f"{card.source}: [PAD] is id {pad_id} in the vocabulary, {card.pad_id} on the card"
        )
    said = settings.get("pad_token_id", 1 if family == "roberta" else pad_id)
    if said != pad_id and (card.pad_id is None or family == "roberta"):
        raise InputError(
            f"{card.source}: [PAD] is id {pad_id} in the vocabulary, {said} in config.json"
        )
    return pad_id


def verify(folder: Path, card: Card) -> Card:
    """Check that vocabulary, weights and card belong together; return the card with its pad id.

    Raises InputError. Else a wrong vocabulary shows only in the accuracy (SKTBrain/KoBERT #104).
    """
    config = read_json(folder / "config.json")
    tokenizer = load_tokenizer(folder, asdict(card))
    pieces, rows = tokenizer.vocab_size, config["vocab_size"]
    source = card.source or folder
    if pieces > rows or rows - pieces >= SPARE_ROWS:
        raise InputError(
            f"{source}: {pieces} pieces in the vocabulary, but {rows} rows in the embedding"
        )
    if card.golden:
        check_golden(folder, card, card.golden)
    return replace(card, pad_id=tokenizer.pad_id)


def check_golden(folder: Path, card: Card, golden: Mapping[str, Any]) -> None:
    """Raise InputError unless the golden text gets its ids, [CLS] and [SEP] included."""
    way = golden.get("pretokenize", card.pretokenize)
    tokenizer = load_tokenizer(folder, {"tokenizer": card.tokenizer, "pretokenize": way})
    ids = tokenizer.encode([golden["text"]], GOLDEN_LENGTH).ids.tolist()
    if ids != golden["ids"]:
        raise InputError(
            f"{card.source}: another vocabulary or tokenizer: {golden['text']!r} becomes {ids}, "
            f"but it should become {golden['ids']}"
        )


def max_length(folder: Path) -> int:
    """How many ids of a text the encoder has positions for."""
    config = read_json(folder / "config.json")
    positions = config["max_position_embeddings"]
    # RoBERTa's first position is the one after its pad id.
    return (
        positions - config["pad_token_id"] - 1 if config["model_type"] == "roberta" else positions
    )


def shape(size: Any) -> str:
    return " x ".join(map(str, size))


def lock(card_file: Path) -> Lock:
    """Fetch what a card's source holds now, verify it, and write the card's lock.

    Raises InputError as `prepare` does; the old lock, if there is one, then stays.
    """
    card = Card.load(card_file)
    if card.kind == "scratch":
        raise InputError(f"{card_file}: kind scratch fetches nothing that could be locked")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        taken, pinned = take_over(card_file, card, None, folder)
        verify(folder, taken)
        golden: dict[str, Any] = {"text": card.golden["text"] if card.golden else GOLDEN_TEXT}
        if taken.pretokenize:
            golden["pretokenize"] = taken.pretokenize
        tokenizer = load_tokenizer(folder, asdict(taken))
        golden["ids"] = tokenizer.encode([golden["text"]], GOLDEN_LENGTH).ids.tolist()
    written = Lock(str(card.source), pinned["revision"], pinned["files"], golden)
    written.save(card_file)
    return written


def main(arguments: Sequence[str] | None = None, cards: Path = Path("encoders")) -> None:
    """python -m storyflower.encoder lock NAME … | card NAME SOURCE"""
    parser = argparse.ArgumentParser(prog="python -m storyflower.encoder")
    commands = parser.add_subparsers(dest="command", required=True)
    pin = commands.add_parser("lock", help="pin what a card's source holds now")
    pin.add_argument("name", nargs="+")
    new = commands.add_parser("card", help="write a card for a hub id or a folder")
    new.add_argument("name")
    new.add_argument("source")
    options = parser.parse_args(arguments)
    if options.command == "lock":
        for name in options.name:
            card_file = cards / f"{name}.yaml"
            written = lock(card_file)
            at = f" at {written.revision}" if written.revision else ""
            print(f"{Lock.beside(card_file)}: {written.source}{at}, {len(written.files)} files")
        return
    card_file = write_card(options.name, options.source, cards)
    Card.load(card_file)
    print(f"{card_file}: use it with encoder: {options.name}; its licence is yours to fill in")


if __name__ == "__main__":
    exit_with_line(main)
