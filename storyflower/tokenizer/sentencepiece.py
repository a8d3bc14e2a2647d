"""A SentencePiece model on words or on whole texts, exactly as the original notebook ran it.

Words repeat, so each distinct word is encoded only once: the same ids, faster. The ids equal the
original's with sentencepiece 0.1.98 to 0.2.1. Since 0.2.2, SentencePiece breaks ties between
segmentations the other way; this changes about one text in 1,600, mostly long runs of one letter.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from storyflower.common.errors import InputError
from storyflower.tokenizer.base import Tokenizer, ends, find_special
from storyflower.tokenizer.basic import basic_clean, rough_words, split_lines

PRETOKENIZE = ("bert", "none")


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, run word by word (`bert`, as in the notebook) or on texts (`none`).

    `bert` gives the same ids as gluonnlp 0.10's BERTVocab.from_sentencepiece, BERTSPTokenizer with
    lower=False, and BERTSentenceTransform with pair=False. `none` gives SentencePiece's own ids,
    like SKT's tokenizer on the hub. In both, "[CLS]" in a text is not the special token.
    """

    def __init__(self, model: Path, pretokenize: str):
        """Raises InputError if the model cannot be read or lacks a special token."""
        from sentencepiece import SentencePieceProcessor

        if pretokenize not in PRETOKENIZE:
            raise InputError(f"pretokenize must be {' or '.join(PRETOKENIZE)}, got {pretokenize!r}")
        try:
            self._model = SentencePieceProcessor(model_proto=model.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{model}: not found") from None
        except (RuntimeError, ValueError):
            raise InputError(f"{model}: not a SentencePiece model") from None
        self.pretokenize = pretokenize
        self.vocab_size = len(self._model)
        # Not piece_to_id: for a missing piece it returns the unknown id instead of an error.
        index = {self._model.id_to_piece(row): row for row in range(self.vocab_size)}
        self.cls_id, self.sep_id, self.pad_id, self.unk_id = find_special(
            index, ("[CLS]", "[SEP]", "[PAD]", "[UNK]"), model
        )
        self.mask_id = index.get("[MASK]")
        if self.unk_id != self._model.unk_id():
            raise InputError(f"{model}: [UNK] is not the model's unknown piece")

    def _encode_block(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if self.pretokenize == "none":
            return self._run(texts)
        words, rows, until = rough_words(texts)
        # Rough words have no newline, and basic_clean never joins characters across a newline, so
        # one call can clean all words.
        parts, parts_until = split_lines(basic_clean("\n".join(words)))
        ids, lengths = self._run(parts)
        offsets = ends(lengths)[parts_until]  # of the distinct words' ids
        starts, lengths = offsets[rows], np.diff(offsets)[rows]
        # Each word of each text takes its ids from this table: `lengths` ids from index `starts`.
        offsets = ends(lengths)
        source = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return ids[source], np.diff(offsets[until])

    def _run(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """SentencePiece on each text: ids end to end, (total,), and lengths (texts,)."""
        return self._ragged(self._model.encode(list(texts), out_type=int))
