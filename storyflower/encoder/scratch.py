"""A card of kind scratch → a vocabulary from Training and a BERT of random weights."""

import io
from collections.abc import Iterator
from pathlib import Path

from storyflower.common.errors import InputError, one_line
from storyflower.encoder.card import Card
from storyflower.interim import dialogues
from storyflower.tokenizer.basic import basic_tokenize
from storyflower.tokenizer.load import load_tokenizer

SPECIAL = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")  # KoBERT's ids 0..4
MAX_SENTENCES = 100_000  # texts that the SentencePiece trainer sees, at about 2 kB each


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
        reason = one_line(error)
        raise InputError(f"{table}: too little text for a vocabulary ({reason})") from None
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
        vocab_size=load_tokenizer(output, card.model_dump()).vocab_size,
        num_hidden_layers=card.layers,
        hidden_size=card.hidden_size,
        num_attention_heads=card.heads,
        intermediate_size=card.intermediate_size,
        pad_token_id=SPECIAL.index("[PAD]"),
    )
    BertModel(config).save_pretrained(output)
