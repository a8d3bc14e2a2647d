"""Pin what a card's source holds today, with checksums."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from storyflower.common.errors import InputError
from storyflower.encoder.card import Card, Lock
from storyflower.encoder.prepare import take_over
from storyflower.encoder.verify import GOLDEN_LENGTH, GOLDEN_TEXT, verify
from storyflower.tokenizer.load import load_tokenizer


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
