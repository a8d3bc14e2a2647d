"""An encoder's folder → its tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storyflower.common.errors import InputError
from storyflower.common.files import read_json
from storyflower.tokenizer.base import Tokenizer
from storyflower.tokenizer.sentencepiece import SentencePieceTokenizer
from storyflower.tokenizer.tokenizer_json import TokenizerJson
from storyflower.tokenizer.wordpiece import WordPieceTokenizer


def load_tokenizer(folder: Path, card: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of an encoder's folder.

    `card` names its kind: `tokenizer: sentencepiece` (spiece.model, with `pretokenize`),
    `wordpiece` (vocab.txt) or `tokenizer.json`. Without `card`, the folder's card.json is read.
    Raises InputError.
    """
    if card is None:
        card = read_json(folder / "card.json")
    if card["tokenizer"] == "sentencepiece":
        return SentencePieceTokenizer(folder / "spiece.model", card["pretokenize"])
    if card["tokenizer"] == "wordpiece":
        return WordPieceTokenizer(folder)
    if card["tokenizer"] == "tokenizer.json":
        return TokenizerJson(folder)
    raise InputError(
        f"tokenizer must be sentencepiece, wordpiece or tokenizer.json, got {card['tokenizer']!r}"
    )
