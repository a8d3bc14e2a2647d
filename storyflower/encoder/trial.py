"""Try an encoder: does it compute what the classifier expects of it?

In: an encoder as read_encoder loads it, and its card.
Out: nothing, or an InputError that says which check failed. Two checks stand in place of a list of
families: a batch computed our way (model/forward.py) must equal transformers' own model run one
text at a time, and the first token's state must change with the last token. Encoders whose layers
see the padding, or whose config.json asks for something unusual, fail the first; models that read
from left to right fail the second.
Not supported: trying the tokenizer; verify.py compares it with the card.
"""

import math
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import torch

from storyflower.common.errors import InputError, one_line
from storyflower.encoder.card import Card
from storyflower.encoder.pretrained import REMEDY
from storyflower.encoder.verify import max_length
from storyflower.interim.tokens import TokenArrays
from storyflower.model import forward
from storyflower.model.batch import make_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Ids in each text. Local attention, as ModernBERT's, reaches over 128, so one is longer.
LENGTHS = (3, 8, 8, 21, 150)
SEED = 14
TOLERANCE = 1e-5  # of the largest state, or of 1 where all are smaller
LEAST_CHANGE = 1e-6  # likewise


def try_out(body: "PreTrainedModel", card: Card) -> None:
    """Raise InputError, in one line, unless the encoder passes both checks.

    `body` is float32 and in evaluation mode. torch's random state is left alone.
    """
    family = body.config.model_type
    who = f"{card.source}: a model of type {family!r}"
    longest = min(max_length(body), max(LENGTHS))
    lengths = [min(length, longest) for length in LENGTHS]
    try:
        texts = random_texts(body, lengths, card)
        with torch.inference_mode():
            change = reach(body, texts)
            off, scale = distance(body, texts)
            if not off <= TOLERANCE * scale:
                # Rounding adds up over many layers. In float64 only a real difference is left; a
                # model that cannot compute in float64 is judged by its float32.
                with suppress(Exception):
                    off, scale = distance(body.double(), texts)
    except Exception as error:  # whatever a model raises that is not made for such texts
        raise InputError(
            f"{who}: cannot compute a batch of padded texts ({one_line(error)}); {REMEDY}"
        ) from None
    finally:
        body.float()
    if math.isnan(off):
        raise InputError(f"{who}: its states are not numbers (NaN); are its weights damaged?")
    if not off <= TOLERANCE * scale:
        reason = (
            "computed without padding, its states differ from transformers' own"
            if family in forward.UNPADDED
            else "its states of a text change with the padding beside it"
        )
        raise InputError(
            f"{who}: {reason}, by {off / scale:.0e} of the largest ({TOLERANCE:.0e} is allowed); "
            f"{REMEDY}"
        )
    if not change > LEAST_CHANGE * scale:
        raise InputError(
            f"{who}: the first token's state does not change with the last token, so it reads from "
            f"left to right only; {REMEDY}"
        )


def random_texts(body: "PreTrainedModel", lengths: list[int], card: Card) -> list[torch.Tensor]:
    """Texts of ordinary ids, each int64 (length,); the same for the same vocabulary."""
    special = {card.pad_id}
    for name, value in body.config.to_dict().items():
        if name.endswith("_token_id"):
            special.update(value if isinstance(value, list) else [value])
    rows = len(body.get_input_embeddings().weight)
    ordinary = torch.tensor([row for row in range(rows) if row not in special])
    state = torch.Generator().manual_seed(SEED)
    return [ordinary[torch.randint(len(ordinary), (n,), generator=state)] for n in lengths]


def distance(body: "PreTrainedModel", texts: list[torch.Tensor]) -> tuple[float, float]:
    """The largest difference between our states and transformers', and the largest state (≥ 1)."""
    lengths = [len(text) for text in texts]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = torch.cat(texts).numpy()
    table = TokenArrays(ids, offsets, np.zeros(len(texts), np.int64))
    batch = make_batch(table, np.arange(len(texts)), token_step=64)  # with filler texts behind
    ours = forward.states(body, batch)[: len(ids)]
    theirs = torch.cat([body(input_ids=text.unsqueeze(0))[0][0] for text in texts])
    if ours.shape != (len(ids), body.config.hidden_size):
        raise ValueError(f"states of shape {tuple(ours.shape)}")
    return (ours - theirs).abs().max().item(), max(1.0, theirs.abs().max().item())


def reach(body: "PreTrainedModel", texts: list[torch.Tensor]) -> float:
    """How much the state of a short text's first token changes when its last token does."""
    before = texts[1]
    others = torch.cat(texts)
    after = torch.cat([before[:-1], others[others != before[-1]][:1]])
    one, other = (body(input_ids=ids.unsqueeze(0))[0][0, 0] for ids in (before, after))
    return (one - other).abs().max().item()
