"""encoders/<name>.yaml and its lock, checked.

In: a card, written by a person, and encoders/<name>.lock.json, which pins what the card's source
held when `python -m storyflower lock <name>` was run.
Out: a Card and a Lock, frozen. The lock is a separate file so that no program edits a file, or its
comments, that a person wrote.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from storyflower.common.errors import InputError
from storyflower.common.files import read_yaml
from storyflower.common.params import (
    BatchSize,
    Epochs,
    MaxLen,
    Optimizer,
    Pooling,
    Rate,
    Share,
    Strict,
)

# tokenizer → its file
VOCABULARY = {
    "sentencepiece": "spiece.model",
    "wordpiece": "vocab.txt",
    "tokenizer.json": "tokenizer.json",
}
NAME = r"\w[\w.-]*"  # of a file or a card
HUB_ID = rf"{NAME}(/{NAME})?"

Pretokenize = Literal["bert", "none"]
Id = Annotated[int, Field(ge=0)]
Steps = Annotated[int, Field(ge=1)]
# An md5 may be shortened: the kobert package publishes only the first ten digits of one.
Checksum = Annotated[str, Field(pattern=r"^(md5:[0-9a-f]{10,32}|sha256:[0-9a-f]{64})\Z")]
Checksums = Annotated[
    dict[Annotated[str, Field(pattern=rf"^{NAME}(/{NAME})*\Z")], Checksum], Field(min_length=1)
]


class Golden(Strict):
    """A test text and its known ids, [CLS] and [SEP] included."""

    text: str
    ids: list[Id]
    pretokenize: Pretokenize | None = None  # None: the card's value


def key(meaning: str, rule: str | None = None, *, default: Any = None, **limits: Any) -> Any:
    """A key of a card: what it means, and what its value must be where its type does not say it."""
    extra = {"rule": rule} if rule else {}
    return Field(default, description=meaning, json_schema_extra=extra, **limits)


class Card(Strict):
    """The content of a card. Keys it leaves out, or that its kind does not have, get defaults."""

    kind: Literal["hub", "path"] = key("where the encoder comes from", default=...)
    license: str = key('SPDX name, or "unknown"', "text", default=..., pattern=r"^.+\Z")
    source: str = key("hub: an id; path: a folder beside the card", "text", default=...)
    revision: str | None = key(
        "hub: what to take; else the newest of the default branch",
        "a commit, tag or branch, in quotes if all digits",
        pattern=rf"^{NAME}(/{NAME})*\Z",
    )
    files: Checksums | None = key(
        "hub: take these alone, and what is in the zips among them; else by the usual names",
        "names with md5:… or sha256:… behind each",
    )
    tokenizer: Literal["sentencepiece", "wordpiece", "tokenizer.json"] | None = key(
        "which of the three; else by the vocabulary that is there, in this order"
    )
    pretokenize: Pretokenize | None = key(
        "of sentencepiece: bert is the notebook's way, none (the default) plain"
    )
    vocabulary: str | None = key(
        "else spiece.model, vocab.txt or tokenizer.json", "a file name", pattern=rf"^{NAME}\Z"
    )
    pad_id: Id | None = key("id of [PAD]; else what the vocabulary says", "a whole number from 0")
    cls_id: Id | None = key(
        "of the token before a text; else as for pad_id", "a whole number from 0"
    )
    sep_id: Id | None = key("of the token behind it; else as for pad_id", "a whole number from 0")
    lower_case: bool | None = key("whether A is read as a; else what the tokenizer does")
    pooling: Pooling = key(
        "first: the pooler's output, or the first token's state without one; mean: of all tokens",
        default="first",
    )
    max_len: MaxLen = key("the token ids per text that max_len: auto means", default=64)
    num_epochs: Epochs = key("the passes over Training that num_epochs: auto means", default=5)
    most_steps: Steps | None = key(
        "where there are many rows, num_epochs: auto means fewer passes, of about so many updates",
        "a whole number from 1",
    )
    batch_size: BatchSize = key("the dialogues that batch_size: auto means", default=64)
    learning_rate: Rate = key("the peak rate that learning_rate: auto means", default=5e-5)
    optimizer: Optimizer = key("what optimizer: auto means", default="adamw")
    mask_rate: Share = key("the share of tokens that mask_rate: auto means", default=0.0)
    golden: Golden | None = key(
        "what the tokenizer is tried on", "a text, its ids, and pretokenize or nothing"
    )

    @field_validator("*", mode="before")
    @classmethod
    def is_given(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("given, or its line left out")
        return value

    @field_validator("source", "pretokenize")
    @classmethod
    def fits_the_keys_above(cls, value: Any, info: ValidationInfo) -> Any:
        kind, above = info.data.get("kind"), info.data
        match info.field_name:
            case "source" if kind == "hub" and not re.fullmatch(HUB_ID, value):
                raise ValueError("a hub id such as klue/bert-base")
            case "source" if kind == "path" and not is_inside(value):
                raise ValueError("a folder beside the card (copy it there)")
            case "pretokenize" if above.get("tokenizer") in ("wordpiece", "tokenizer.json"):
                raise ValueError(f"left out with {above['tokenizer']}")
        return value

    @classmethod
    def load(cls, file: Path) -> "Card":
        """Read and check a card. Raises InputError that names the file, the key and the value."""
        names = ", ".join(sorted(card.stem for card in file.parent.glob("*.yaml")))
        raw = read_yaml(
            file,
            f"there are cards for {names}; 'python -m storyflower card NAME SOURCE' writes another",
        )
        absent = {"revision", "files"} if raw.get("kind") == "path" else set()
        return cls.check(raw, str(file), absent)


def is_inside(source: str) -> bool:
    """Whether a source lies below its card's folder, where DVC sees changes; ignores links."""
    path = Path(source)
    return source.isprintable() and not path.is_absolute() and ".." not in path.parts


class Lock(Strict):
    """What a card's source held when it was locked."""

    source: str
    revision: str | None  # of a hub source: the full commit
    files: Checksums
    golden: Golden

    @staticmethod
    def beside(card_file: Path) -> Path:
        return card_file.with_name(f"{card_file.stem}.lock.json")

    @classmethod
    def load(cls, card_file: Path, card: Card) -> "Lock | None":
        """A card's lock; None if it has none. Raises InputError if the lock does not fit the card.

        Also if the lock is damaged.
        """
        file = cls.beside(card_file)
        again = f"lock it again: python -m storyflower lock {card_file.stem}"
        try:
            lock = cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            raise InputError(f"{file}: damaged; {again}") from None
        if lock.source != card.source:
            raise InputError(f"{file}: of {lock.source}, but the card says {card.source}; {again}")
        commit = re.fullmatch("[0-9a-f]{40}", card.revision or "")
        if commit and lock.revision != card.revision:
            raise InputError(
                f"{file}: of revision {lock.revision}, but the card says {card.revision}; {again}"
            )
        if card.files and card.files.keys() != lock.files.keys():
            raise InputError(f"{file}: of other files than the card names; {again}")
        return lock


def write_card(name: str, source: str, folder: Path) -> Path:
    """Write a new card of three lines for a hub id or a folder; return its path.

    Raises InputError if the name has other characters than NAME allows, the card already exists,
    or the source is neither a hub id nor a folder below `folder`.
    """
    if not re.fullmatch(NAME, name):
        raise InputError(f"{name!r}: a card's name has letters, digits, '.', '_' and '-' only")
    file = folder / f"{name}.yaml"
    if Path(source).is_dir():
        kind, path = "path", Path(source).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise InputError(f"{source}: copy it to {folder / name} first, where DVC watches it")
        source = str(path.relative_to(folder.resolve()))
    elif re.fullmatch(HUB_ID, source) and Path(source).parent != folder:
        kind = "hub"
    else:
        raise InputError(f"{source}: neither a folder nor a hub id such as klue/bert-base")
    # Quoted as JSON, which is valid YAML: a name such as 1e5 stays text.
    quoted = json.dumps(source, ensure_ascii=False)
    try:
        with file.open("x", encoding="utf-8") as card:
            card.write(f"kind: {kind}\nsource: {quoted}\nlicense: unknown\n")
    except FileExistsError:
        raise InputError(f"{file}: is there already; it is not overwritten") from None
    except FileNotFoundError:
        raise InputError(f"{folder}: no such folder; run this in the repository's root") from None
    return file
