"""Pin what a card's source holds now, with checksums.

In: a card of kind hub or path.
Out: encoders/<name>.lock.json.
"""

import tempfile
from pathlib import Path

from storyflower.common.files import write_json
from storyflower.encoder.card import Card, Golden, Lock
from storyflower.encoder.prepare import take_over
from storyflower.encoder.verify import GOLDEN_LENGTH, GOLDEN_TEXT, verify
from storyflower.tokenizer.load import load_tokenizer


def lock(card_file: Path) -> Lock:
    """Fetch what a card's source holds now, verify it, and write the card's lock.

    Raises InputError as `prepare` does; an old lock then stays unchanged.
    """
    card = Card.load(card_file)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        taken, pinned = take_over(card_file, card, None, folder)
        verify(folder, taken)
        text = card.golden.text if card.golden else GOLDEN_TEXT
        tokenizer = load_tokenizer(folder, taken.model_dump())
        ids = tokenizer.encode([text], GOLDEN_LENGTH).ids.tolist()
    golden = Golden(text=text, ids=ids, pretokenize=taken.pretokenize)
    written = Lock(source=card.source, golden=golden, **pinned)
    write_json(written.model_dump(), Lock.beside(card_file))
    return written
