"""Check that the vocabulary, the weights and the card of an encoder folder belong together.

In: an encoder folder and its card.
Out: the card, completed, or an InputError.
Not supported: checking the weights; `model.folder` checks that they fit config.json.
"""

from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from torch import nn

from storyflower.common.errors import InputError
from storyflower.common.files import read_json
from storyflower.encoder.card import Card, Golden
from storyflower.tokenizer.base import Tokenizer
from storyflower.tokenizer.load import load_tokenizer

# Some embeddings are padded to a multiple of 128, and those of large vocabularies by up to 0.4%
# (mDeBERTa: 250,102 pieces, 251,000 rows). More means a wrong vocabulary.
SPARE_ROWS, SPARE_SHARE = 128, 0.005
GOLDEN_TEXT = "한국어 모델을 공유합니다."  # from KoBERT's README
GOLDEN_LENGTH = 512  # max_len for golden texts, in ids
UNLIMITED = 512  # as long as max_len may be, for relative positions without an end


def verify(folder: Path, card: Card) -> Card:
    """Check that vocabulary, weights and card belong together; return the card with its ids.

    Raises InputError if not. A wrong vocabulary would otherwise show only as low accuracy
    (SKTBrain/KoBERT #104).
    """
    config = read_json(folder / "config.json")
    tokenizer = load_tokenizer(folder, card.model_dump())
    pieces, rows = tokenizer.vocab_size, config["vocab_size"]
    if pieces > rows or rows - pieces >= max(SPARE_ROWS, SPARE_SHARE * rows):
        raise InputError(
            f"{card.source}: {pieces} pieces in the vocabulary, but {rows} rows in the embedding"
        )
    ids = {key: getattr(tokenizer, key) for key in ("cls_id", "sep_id")}
    for key, row in ids.items():
        if getattr(card, key) not in (None, row):
            raise InputError(
                f"{card.source}: {key} is {row} in the tokenizer, {getattr(card, key)} on the card"
            )
    lower = lower_cases(tokenizer)
    if None not in (card.lower_case, lower) and card.lower_case != lower:
        does = "lower-cases" if lower else "does not lower-case"
        raise InputError(
            f"{card.source}: the tokenizer {does}, but the card says lower_case: "
            f"{str(card.lower_case).lower()}"
        )
    if card.golden:
        check_golden(folder, card, card.golden)
    return card.model_copy(update={**ids, "pad_id": tokenizer.pad_id, "lower_case": lower})


def check_added(folder: Path, card: Card, find: Callable[[str], Path | None]) -> None:
    """Raise InputError if other files add tokens to a vocab.txt for which the embedding has rows.

    `find` looks into the card's source.
    """
    settings = read_json(folder / "tokenizer_config.json", missing={})
    older = read_json(folder / "added_tokens.json", missing={})  # token → id
    added = set(map(str, [*(settings.get("added_tokens_decoder") or {}), *older.values()]))
    pieces = load_tokenizer(folder, card.model_dump()).vocab_size
    rows = range(pieces, read_json(folder / "config.json")["vocab_size"])
    if count := sum(row.isdecimal() and int(row) in rows for row in added):
        remedy = "make a tokenizer.json, as docs/encoders.md says"
        if find("tokenizer.json"):
            remedy = "say tokenizer: tokenizer.json on the card"
        raise InputError(f"{card.source}: {count} tokens are added that vocab.txt lacks; {remedy}")


def lower_cases(tokenizer: Tokenizer) -> bool | None:
    """Whether a tokenizer reads A as a; None if it knows no Latin letter, so that none can tell."""
    known = None
    for letter in ascii_lowercase:
        tokens = tokenizer.encode([letter, letter.upper()], GOLDEN_LENGTH)
        small, large = np.split(tokens.ids, tokens.offsets[1:-1])
        if not np.array_equal(small, large):
            return False
        if tokenizer.unk_id not in small:
            known = True
    return known


def check_golden(folder: Path, card: Card, golden: Golden) -> None:
    """Raise InputError unless the golden text gives its ids, [CLS] and [SEP] included."""
    way = golden.pretokenize or card.pretokenize
    tokenizer = load_tokenizer(folder, {"tokenizer": card.tokenizer, "pretokenize": way})
    ids = tokenizer.encode([golden.text], GOLDEN_LENGTH).ids.tolist()
    if ids != golden.ids:
        raise InputError(
            f"{card.source}: another vocabulary or tokenizer: {golden.text!r} becomes {ids}, "
            f"but it should become {golden.ids}"
        )


def max_length(body: nn.Module) -> int:
    """The longest text, in ids, that the encoder has positions for."""
    found = [getattr(body.config, "max_position_embeddings", 0)]
    for name, module in body.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            # Where the pad id has a position, as in RoBERTa, those of a text come after it.
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            found.append(module.num_embeddings - skipped)
    return min((positions for positions in found if positions > 0), default=UNLIMITED)
