"""encoders/<name>.yaml and its lock, checked.

In: a card, which people write, and encoders/<name>.lock.json, which pins what the card's source
held on the day of `python -m storyflower lock <name>`.
Out: a Card and a Lock, frozen. The lock is a file of its own so that no program edits what people
write, comments included.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from storyflower.common.errors import InputError
from storyflower.common.files import read_yaml, write_json
from storyflower.common.params import OPTIMIZERS
from storyflower.tokenizer.sentencepiece import PRETOKENIZE

VOCABULARY = {"sentencepiece": "spiece.model", "wordpiece": "vocab.txt"}  # tokenizer → its file
SHAPE = ("vocab_size", "layers", "hidden_size", "heads", "intermediate_size")
NAME = r"\w[\w.-]*"  # a file's or a card's
HUB_ID = r"\w[\w.-]*(/\w[\w.-]*)?"

ALWAYS = {"kind", "license"}
FETCHED = {"tokenizer", "pretokenize", "vocabulary", "pad_id", "learning_rate", "optimizer"}
# kind → the keys it needs, and those it may have
KEYS = {
    "scratch": (ALWAYS | {"tokenizer", "pretokenize", "learning_rate", *SHAPE}, {"optimizer"}),
    "hub": (ALWAYS | {"source"}, FETCHED | {"revision", "golden"}),
    "url": (ALWAYS | {"source", "files", "tokenizer", "vocabulary"}, FETCHED | {"golden"}),
    "path": (ALWAYS | {"source"}, FETCHED | {"golden"}),
}


@dataclass(frozen=True)
class Card:
    """What a card says. Keys that it leaves out, or that its kind does not know, are None."""

    kind: str  # scratch, hub, url or path
    license: str  # SPDX name, or "unknown"
    source: str | None = None  # hub: an id; url: the files' base; path: a folder
    revision: str | None = None  # hub: a commit, tag or branch; None: the default branch
    files: dict[str, str] | None = None  # url: name → md5:… or sha256:…
    tokenizer: str | None = None  # sentencepiece or wordpiece; None: by the file that is there
    pretokenize: str | None = None  # sentencepiece: bert (the notebook's way) or none (the default)
    vocabulary: str | None = None  # the vocabulary's file; None: spiece.model or vocab.txt
    pad_id: int | None = None  # id of [PAD]; None: what the vocabulary says
    learning_rate: float = 5e-5  # the peak rate that learning_rate: auto means
    optimizer: str = "adamw"  # one of OPTIMIZERS
    golden: dict[str, Any] | None = None  # a text, its ids, and their pretokenize
    # Kind scratch: the shape
    vocab_size: int | None = None  # pieces, at most
    layers: int | None = None
    hidden_size: int | None = None
    heads: int | None = None
    intermediate_size: int | None = None

    @classmethod
    def load(cls, file: Path) -> "Card":
        """Read and check a card; raises InputError naming the file, the key and the value."""
        names = ", ".join(sorted(card.stem for card in file.parent.glob("*.yaml")))
        raw = read_yaml(
            file,
            f"there are cards for {names}; 'python -m storyflower card NAME SOURCE' writes another",
        )
        if not isinstance(raw.get("kind"), str) or raw["kind"] not in KEYS:
            raise InputError(
                f"{file}: kind must be one of {', '.join(KEYS)}, got {raw.get('kind')!r}"
            )
        needed, allowed = KEYS[raw["kind"]]
        if missing := sorted(needed - raw.keys()):
            raise InputError(f"{file}: key {missing[0]!r} is missing")
        if unknown := sorted(str(key) for key in raw.keys() - needed - allowed):
            known = ", ".join(field.name for field in fields(cls) if field.name in needed | allowed)
            raise InputError(f"{file}: unknown key {unknown[0]!r}; this kind knows {known}")
        return cls(**check_values(raw, str(file)))


def check_values(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A card's keys with checked values; raises InputError naming the key and the value."""
    raw = dict(raw)

    def need(key: str, good: bool, rule: str) -> None:
        if key in raw and not good:
            raise InputError(f"{where}: {key} must be {rule}, got {raw[key]!r}")

    def one_of(key: str, values: tuple[str, ...]) -> None:
        good = isinstance(raw.get(key), str) and raw[key] in values
        need(key, good, "one of " + ", ".join(values))

    def text(key: str, pattern: str, rule: str) -> None:
        need(key, isinstance(raw.get(key), str) and bool(re.fullmatch(pattern, raw[key])), rule)

    one_of("tokenizer", tuple(VOCABULARY))
    one_of("pretokenize", PRETOKENIZE)
    one_of("optimizer", OPTIMIZERS)
    text("license", ".+", "text")
    text("revision", r"\w[\w.-]*(/\w[\w.-]*)*", "a commit, tag or branch, in quotes if all digits")
    text("vocabulary", NAME, "a file name")
    need("pad_id", is_count(raw.get("pad_id"), 0), "a whole number from 0")
    try:
        # YAML 1.1 reads 5e-5 as text.
        rate = float(raw.get("learning_rate", 1))
    except (TypeError, ValueError):
        rate = 0.0
    rate = 0.0 if isinstance(raw.get("learning_rate"), bool) else rate
    need("learning_rate", 0 < rate <= 1, "a number in (0, 1]")
    if "learning_rate" in raw:
        raw["learning_rate"] = rate
    if raw["kind"] == "scratch":
        need("tokenizer", raw["tokenizer"] == "sentencepiece", "sentencepiece for kind scratch")
        for key in SHAPE:
            need(key, is_count(raw[key], 1), "a whole number above 0")
        need("hidden_size", raw["hidden_size"] % raw["heads"] == 0, "a multiple of heads")
        need("vocab_size", raw["vocab_size"] >= 16, "at least 16")
    elif raw["kind"] == "hub":
        text("source", HUB_ID, "a hub id such as klue/bert-base")
    elif raw["kind"] == "url":
        text("source", r"https?://\S+", "an http or https address")
        need("files", are_checksums(raw["files"]), "names with md5:… or sha256:… behind each")
    else:
        inside = isinstance(raw["source"], str) and not Path(raw["source"]).is_absolute()
        # DVC watches that folder, so a change reruns the stage; it does not see through links.
        inside = inside and ".." not in Path(raw["source"]).parts
        need("source", inside, "a folder beside the card (copy it there)")
    need("golden", is_golden(raw.get("golden")), "a text, its ids, and pretokenize or nothing")
    if raw.get("tokenizer") == "wordpiece":
        need("pretokenize", False, "left out with wordpiece")
    return raw


def is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def are_checksums(value: Any) -> bool:
    """Whether a card's `files` is right: the kobert package publishes 10 digits of one md5."""
    rule = r"md5:[0-9a-f]{10,32}|sha256:[0-9a-f]{64}"
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) and re.fullmatch(NAME, name) for name in value)
        and all(isinstance(sum_, str) and re.fullmatch(rule, sum_) for sum_ in value.values())
    )


def is_golden(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and {"text", "ids"} <= value.keys() <= {"text", "ids", "pretokenize"}
        and isinstance(value["text"], str)
        and isinstance(value["ids"], list)
        and all(is_count(row, 0) for row in value["ids"])
        and value.get("pretokenize", "none") in PRETOKENIZE
    )


@dataclass(frozen=True)
class Lock:
    """What a card's source held when it was locked."""

    source: str
    revision: str | None  # of a hub source: the full commit
    files: dict[str, str]  # name → sha256:…
    golden: dict[str, Any]  # as on a card

    @staticmethod
    def beside(card_file: Path) -> Path:
        return card_file.with_name(f"{card_file.stem}.lock.json")

    @classmethod
    def load(cls, card_file: Path, card: Card) -> "Lock | None":
        """The lock of a card; None where it has none. Raises InputError when it does not fit."""
        file = cls.beside(card_file)
        again = f"lock it again: python -m storyflower lock {card_file.stem}"
        try:
            lock = cls(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise InputError(f"{file}: damaged; {again}") from None
        if not are_checksums(lock.files) or not is_golden(lock.golden):
            raise InputError(f"{file}: damaged; {again}")
        if lock.source != card.source:
            raise InputError(f"{file}: of {lock.source}, but the card says {card.source}; {again}")
        commit = re.fullmatch("[0-9a-f]{40}", card.revision or "")
        if commit and lock.revision != card.revision:
            raise InputError(
                f"{file}: of revision {lock.revision}, but the card says {card.revision}; {again}"
            )
        return lock

    def save(self, card_file: Path) -> None:
        """Write the lock beside its card; a reader sees the old or the new one, never half."""
        write_json(asdict(self), self.beside(card_file))


def write_card(name: str, source: str, folder: Path) -> Path:
    """Write a new card of three lines for a hub id or a folder; return its path.

    Raises InputError when the name is no plain name, the card is there already, or the source is
    neither.
    """
    if not re.fullmatch(NAME, name):
        raise InputError(f"{name!r}: a card's name has letters, digits, '.', '_' and '-' only")
    file = folder / f"{name}.yaml"
    if Path(source).is_dir():
        kind, place = "path", Path(source).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise InputError(f"{source}: copy it to {folder / name} first, where DVC watches it")
        source = str(place.relative_to(folder.resolve()))
    elif re.fullmatch(HUB_ID, source):
        kind = "hub"
    else:
        raise InputError(f"{source}: neither a folder nor a hub id such as klue/bert-base")
    # Quoted as in JSON, which YAML reads: a name such as 1e5 stays text.
    quoted = json.dumps(source, ensure_ascii=False)
    try:
        with file.open("x", encoding="utf-8") as card:
            card.write(f"kind: {kind}\nsource: {quoted}\nlicense: unknown\n")
    except FileExistsError:
        raise InputError(f"{file}: is there already; it is not overwritten") from None
    except FileNotFoundError:
        raise InputError(f"{folder}: no such folder; run this in the repository's root") from None
    return file
