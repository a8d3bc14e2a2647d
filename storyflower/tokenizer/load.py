"""An encoder's folder → its tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storyflower.common.errors import InputError
from storyflower.common.files import read_json
from storyflower.tokenizer.base import Tokenizer
from storyflower.tokenizer.sentencepiece import SentencePieceTokenizer
from storyflower.tokenizer.wordpiece import WordPieceTokenizer


def load_tokenizer(folder: Path, card: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of an encoder's folder.

    `card` names its kind: `tokenizer: sentencepiece` (spiece.model, with `pretokenize`) or
    `wordpiece` (vocab.txt). Without `card`, the folder's card.json is read. Raises InputError.
    """
    if card is None:
        card = read_json(folder / "card.json")
    if card["tokenizer"] == "sentencepiece":
        return SentencePieceTokenizer(folder / "spiece.model", card["pretokenize"])
    if card["tokenizer"] == "wordpiece":
        return WordPieceTokenizer(folder)
    raise InputError(f"tokenizer must be sentencepiece or wordpiece, got {card['tokenizer']!r}")
