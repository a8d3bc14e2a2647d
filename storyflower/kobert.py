"""The two functions of the kobert package, for notebooks written against it.

In: the encoder folder of a kobert card (made by `dvc repro encoder` with `encoder: kobert`).
Out: what `kobert` returned: a path for BERTSPTokenizer, and (model, vocab). Instead of

    from kobert.utils import get_tokenizer
    from kobert.pytorch_kobert import get_pytorch_kobert_model

write `from storyflower.kobert import get_tokenizer, get_pytorch_kobert_model`.
Not supported: downloads. The old functions downloaded the files themselves and returned None if
that failed. torch is imported only when a model is loaded: Vocab must also work beside gluonnlp,
where torch is not installed.
"""

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from storyflower.common.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENCODER = Path("models/encoder")
SHIPPED = "seedling"
REMEDY = "set encoder: kobert in params.yaml and run 'dvc repro encoder'"


class TokenToIdx(dict):
    """token → id; an unknown token gets the id of [UNK], as in gluonnlp."""

    def __missing__(self, token: str) -> int:
        return self[Vocab.unknown_token]


class Vocab:
    """Pieces and their ids, with the same attribute names as gluonnlp's BERTVocab.

    It works with BERTSPTokenizer and BERTSentenceTransform, which look up tokens with `vocab[...]`
    and `to_indices` and read the special tokens as attributes.
    """

    unknown_token, padding_token = "[UNK]", "[PAD]"
    cls_token, sep_token, mask_token = "[CLS]", "[SEP]", "[MASK]"
    reserved_tokens = ["[CLS]", "[SEP]", "[MASK]", "[PAD]"]

    def __init__(self, pieces: Sequence[str], bos: int = -1, eos: int = -1):
        """`pieces` in the order of their ids; bos and eos are SentencePiece's ids, -1 for none."""
        self.idx_to_token = list(pieces)
        self.token_to_idx = TokenToIdx((piece, index) for index, piece in enumerate(pieces))
        self.bos_token = pieces[bos] if bos >= 0 else None
        self.eos_token = pieces[eos] if eos >= 0 else None

    def __len__(self) -> int:
        return len(self.idx_to_token)

    def __contains__(self, token: str) -> bool:
        return token in self.token_to_idx

    def __getitem__(self, tokens: str | Sequence[str]) -> int | list[int]:
        """The id of a token, or a list of ids for several; an unknown token gets [UNK]'s id."""
        if isinstance(tokens, str):
            return self.token_to_idx[tokens]
        return [self[token] for token in tokens]

    to_indices = __call__ = __getitem__

    def to_tokens(self, indices: int | Sequence[int]) -> str | list[str]:
        """The token of an id, or a list for several. Raises ValueError for an id out of range."""
        if isinstance(indices, Integral):  # numpy's integers too
            if not 0 <= indices < len(self):
                raise ValueError(f"token index {indices} is not in [0, {len(self) - 1}]")
            return self.idx_to_token[indices]
        return [self.to_tokens(index) for index in indices]


def get_tokenizer(cachedir: str | Path | None = None) -> str:
    """Path of the SentencePiece model in an encoder folder, by default models/encoder.

    In the old calls `cachedir` was the download folder (".cache"), so a `cachedir` without a
    spiece.model is ignored. Raises InputError if models/encoder is needed and has no spiece.model,
    or holds the encoder that ships; that encoder is used only if `cachedir` names its folder.
    """
    return str(encoder_folder(cachedir) / "spiece.model")


def get_pytorch_kobert_model(
    ctx: str = "cpu", cachedir: str | Path | None = None
) -> tuple["PreTrainedModel", Vocab]:
    """(model, vocab) of an encoder folder, on device `ctx`, in evaluation mode.

    The model returns tuples, (sequence output, pooled output), as the notebook's
    `_, pooler = bert(input_ids=..., token_type_ids=..., attention_mask=...)` expects. `cachedir`
    and errors are as in `get_tokenizer`. Raises InputError also if the model is not a BERT or has
    no pooler.
    """
    import torch
    from sentencepiece import SentencePieceProcessor

    from storyflower.model.folder import read_encoder

    folder = encoder_folder(cachedir)
    model = read_encoder(folder)
    if model.config.model_type != "bert":
        raise InputError(f"{folder}: a {model.config.model_type}, but KoBERT is a bert; {REMEDY}")
    if model.pooler is None:
        raise InputError(f"{folder}: has no pooler, whose output old notebooks use; {REMEDY}")
    model.config.return_dict = False
    processor = SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    pieces = [processor.id_to_piece(index) for index in range(len(processor))]
    vocab = Vocab(pieces, processor.bos_id(), processor.eos_id())
    return model.to(torch.device(ctx)).eval(), vocab


def encoder_folder(cachedir: str | Path | None) -> Path:
    """The encoder folder to use; raises InputError as described in `get_tokenizer`."""
    if cachedir is not None and (Path(cachedir) / "spiece.model").is_file():
        return Path(cachedir)
    if not (ENCODER / "spiece.model").is_file():
        raise InputError(f"{ENCODER / 'spiece.model'}: not found; {REMEDY}")
    from storyflower.common.files import read_json

    if read_json(ENCODER / "card.json").get("name") == SHIPPED:
        raise InputError(f"{ENCODER}: {SHIPPED}, the encoder that ships, not KoBERT; {REMEDY}")
    return ENCODER
