"""A tokenizer.json: a whole pipeline, as the tokenizers library writes and reads it.

In: a folder with tokenizer.json and, if there are such files, tokenizer_config.json and
special_tokens_map.json, of which only the names of the special tokens are read.
Out: the ids of transformers' PreTrainedTokenizerFast on the same file.
Not supported: what tokenizer_config.json changes of the pipeline, such as do_lower_case.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storyflower.common.errors import InputError, one_line
from storyflower.common.files import read_json
from storyflower.tokenizer.base import BackendTokenizer, token_names

NAMES = ("special_tokens_map.json", "tokenizer_config.json")  # they name special tokens


class TokenizerJson(BackendTokenizer):
    """A tokenizer.json, whatever its kind: WordPiece, BPE, Unigram.

    As in transformers, "[CLS]" in a text is the special token. The file's own truncation and
    padding are switched off. A model without an unknown token, such as byte-level BPE, has the
    unk_id -1, which no token has.
    """

    pretokenize = "none"

    def __init__(self, folder: Path):
        """Raises InputError for a damaged file.

        Also unless it puts one special token before a text and one behind it, and has [PAD].
        """
        from tokenizers import Tokenizer as Backend

        self._file = file = folder / "tokenizer.json"
        document = read_json(file)
        try:
            backend = Backend.from_str(file.read_text(encoding="utf-8"))
            backend.no_truncation()
            backend.no_padding()
            frame = backend.encode("").ids
            ids = backend.encode("가").ids
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the library's is no Exception
            raise InputError(
                f"{file}: not a tokenizer that can be read: {one_line(error)}"
            ) from None
        self._backend = backend
        self.vocab_size = 1 + max(backend.get_vocab().values(), default=-1)  # ids may have gaps
        inside = backend.encode("가", add_special_tokens=False).ids
        if (
            len(frame) != 2
            or ids != [frame[0], *inside, frame[1]]
            or max(frame) >= self.vocab_size  # the frame has ids of its own
        ):
            raise InputError(
                f"{file}: does not put one special token before a text and one behind it"
            )
        self.cls_id, self.sep_id = frame
        self.unk_id = self._unknown(document["model"])
        named = token_names(document.get("padding") or {})
        for path in (folder / name for name in NAMES):  # the later one wins
            named |= token_names(read_json(path, missing={}))
        self.pad_id = self._special("pad", named)
        if self.pad_id is None:
            missing = named.get("pad_token", "[PAD] or <pad>, and no file names another pad token")
            raise InputError(f"{file}: the vocabulary has no {missing}")
        self.mask_id = self._special("mask", named)

    def _unknown(self, model: Mapping[str, Any]) -> int:
        """The id of the model's unknown token; -1 if it has none."""
        if model.get("unk_id") is not None:  # Unigram
            return int(model["unk_id"])
        token = model.get("unk_token")
        row = -1 if token is None else self._backend.token_to_id(token)
        if row is None:
            raise InputError(f"{self._file}: the vocabulary has no {token}")
        return row

    def _special(self, kind: str, named: Mapping[str, str]) -> int | None:
        """The id of the pad or mask token: the one that is named, else one written as usual."""
        if token := named.get(f"{kind}_token"):
            return self._backend.token_to_id(token)
        added = self._backend.get_added_tokens_decoder().items()
        special = {token.content: row for row, token in added if token.special}
        return special.get(f"[{kind.upper()}]", special.get(f"<{kind}>"))
