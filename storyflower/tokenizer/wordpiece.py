"""A vocab.txt with BERT's own basic tokenizer and WordPiece."""

from pathlib import Path

from storyflower.common.errors import InputError
from storyflower.common.files import read_json
from storyflower.tokenizer.base import BackendTokenizer, find_special, token_names


class WordPieceTokenizer(BackendTokenizer):
    """A vocab.txt with BERT's basic tokenizer and WordPiece: the same ids as BertTokenizer.

    Unlike with SentencePiece, "[CLS]" in a text is the special token, as in transformers. Not
    supported: tokens added to the vocabulary, and special tokens that absorb blanks (lstrip,
    rstrip).
    """

    pretokenize = "bert"

    def __init__(self, folder: Path):
        """Reads vocab.txt and, if there is one, tokenizer_config.json; raises InputError."""
        from tokenizers import AddedToken, normalizers, pre_tokenizers
        from tokenizers import Tokenizer as Backend
        from tokenizers.models import WordPiece

        file = folder / "vocab.txt"
        config = read_json(folder / "tokenizer_config.json", missing={})
        try:
            # Not splitlines: some pieces are characters that Python treats as line separators.
            lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except FileNotFoundError:
            raise InputError(f"{file}: not found") from None
        except UnicodeDecodeError:
            raise InputError(f"{file}: not UTF-8") from None
        index = {piece: row for row, piece in enumerate(lines)}
        named, names = token_names(config), ("cls", "sep", "pad", "unk", "mask")
        special = {name: named.get(f"{name}_token", f"[{name.upper()}]") for name in names}
        ids = find_special(index, special.values(), file)
        self.cls_id, self.sep_id, self.pad_id, self.unk_id, self.mask_id = ids
        self._backend = Backend(WordPiece(index, unk_token=special["unk"]))
        self._backend.normalizer = normalizers.BertNormalizer(
            lowercase=config.get("do_lower_case", True),
            strip_accents=config.get("strip_accents"),
            handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        )
        self._backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._backend.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in special.values()]
        )
        self.vocab_size = self._backend.get_vocab_size()
