"""An encoder's own forward pass, on texts padded to the longest of their batch.

In: a transformers encoder of any family, and a batch of texts end to end.
Out: the last hidden states of all tokens, or of chosen ones, in the order of the batch's tokens, as
forward.py gives them for the families that it computes without padding.
Not supported: encoders whose states change with the padding beside a text (ConvBERT, FNet);
encoder/trial.py refuses them.
"""

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from storyflower.model.batch import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def states(
    encoder: "PreTrainedModel", batch: Batch, tokens: torch.Tensor | None = None
) -> torch.Tensor:
    """Last hidden states of all tokens of the batch, or of some, (chosen, hidden).

    `tokens`, (chosen,) int64, are the indices of tokens of dialogues; `batch.first` is every
    dialogue's first token. Filler texts are left out, their tokens' states are 0. Dropout is that
    of the encoder's modules. Runs in the precision of torch's autocast if that is on.
    """
    # From the groups, which are numbers: reading a tensor would make the CPU wait for a GPU.
    lengths = [length for texts, length in batch.groups for _ in range(texts)][: len(batch.first)]
    texts, width, total = len(lengths), lengths[-1], sum(lengths)
    slots = batch.text[:total] * width + batch.positions[:total]  # (total,): places in a rectangle
    ids = batch.ids.new_full((texts * width,), encoder.config.pad_token_id)
    ids = ids.index_copy(0, slots, batch.ids[:total]).view(texts, width)
    mask = torch.arange(width, device=ids.device) < batch.lengths[:texts].unsqueeze(1)
    # By number, because a config may ask for a tuple.
    hidden = encoder(input_ids=ids, attention_mask=mask.long())[0].flatten(0, 1)
    if tokens is not None:
        return hidden[slots[tokens]]
    return functional.pad(hidden[slots], (0, 0, 0, len(batch.ids) - total))
