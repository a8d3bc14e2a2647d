"""Check that the vocabulary, the weights and the card of an encoder folder belong together.

In: an encoder folder and its card.
Out: the card, completed, or an InputError.
Not supported: checking the weights; `model.folder` checks that they fit config.json.
"""

from pathlib import Path

from torch import nn

from storyflower.common.errors import InputError
from storyflower.common.files import read_json
from storyflower.encoder.card import Card, Golden
from storyflower.tokenizer.load import load_tokenizer

SPARE_ROWS = 128  # some embeddings are padded to a multiple of 128; more means a wrong vocabulary
GOLDEN_TEXT = "한국어 모델을 공유합니다."  # from KoBERT's README
GOLDEN_LENGTH = 512  # max_len for golden texts, in ids
UNLIMITED = 512  # as long as max_len may be, for relative positions without an end


def verify(folder: Path, card: Card) -> Card:
    """Check that vocabulary, weights and card belong together; return the card with its pad id.

    Raises InputError if not. A wrong vocabulary would otherwise show only as low accuracy
    (SKTBrain/KoBERT #104).
    """
    config = read_json(folder / "config.json")
    tokenizer = load_tokenizer(folder, card.model_dump())
    pieces, rows = tokenizer.vocab_size, config["vocab_size"]
    if pieces > rows or rows - pieces >= SPARE_ROWS:
        raise InputError(
            f"{card.source}: {pieces} pieces in the vocabulary, but {rows} rows in the embedding"
        )
    if card.golden:
        check_golden(folder, card, card.golden)
    return card.model_copy(update={"pad_id": tokenizer.pad_id})


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
