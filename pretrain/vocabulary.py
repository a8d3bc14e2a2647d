"""Texts → a SentencePiece vocabulary with KoBERT's special ids."""

import io
import re
from collections.abc import Iterable
from pathlib import Path

from storyflower.common.errors import InputError, one_line
from storyflower.tokenizer.basic import basic_tokenize

SPECIAL = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")  # KoBERT's ids 0..4
CARD = {"tokenizer": "sentencepiece", "pretokenize": "bert"}  # how a vocabulary is to be read
MASK_ID = SPECIAL.index("[MASK]")
MAX_SENTENCES = 200_000  # texts that the trainer sees, at about 2 kB each


def train_vocabulary(texts: Iterable[str], output: Path, *, pieces: int, seed: int) -> None:
    """Write a unigram model of at most `pieces` pieces, the special ones first.

    Raises InputError for too little text, and for fewer pieces than the texts have characters.
    """
    import sentencepiece

    sentencepiece.set_random_generator_seed(seed)
    vocabulary = io.BytesIO()  # a full disk it would not report, and leave an empty file
    try:
        sentencepiece.SentencePieceTrainer.train(
            # The pieces are for words as the tokenizer will cut them (pretokenize: bert).
            sentence_iterator=(" ".join(basic_tokenize(text)) for text in texts),
            model_writer=vocabulary,
            model_type="unigram",
            vocab_size=pieces,
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
        if needed := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
            raise InputError(
                f"--pieces {pieces}: the characters of these texts alone need {needed[1]}; raise it"
            ) from None
        raise InputError(f"too little text for a vocabulary ({one_line(error)})") from None
    output.write_bytes(vocabulary.getvalue())
