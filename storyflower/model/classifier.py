"""Encoder + dropout + linear → logits."""

from inspect import signature
from typing import TYPE_CHECKING

import torch
from torch import nn

from storyflower.model import forward
from storyflower.model.batch import Batch

if TYPE_CHECKING:
    from storyflower.common.params import Pooling


class EmotionClassifier(nn.Module):
    """The notebook's classifier: the encoder's summary of a text, dropout, one linear layer.

    With pooling "first", the summary is the pooler's output if the checkpoint has a pooler
    (KoBERT), else the last hidden state of the first token. Many families never have a pooler
    (ELECTRA, ModernBERT, DeBERTa); nor do models that were pretrained only on masked words
    (klue/roberta-base). One that is no more than a linear layer (ALBERT, BigBird) is dropped. With
    "mean", the summary is the mean of the last hidden states of all tokens, [CLS] and [SEP]
    included, and any pooler is dropped.
    """

    def __init__(
        self, encoder: nn.Module, num_classes: int, dr_rate: float, pooling: "Pooling" = "first"
    ):
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        if pooling == "mean" or not reads_texts(encoder):
            drop_pooler(encoder)
        self.dropout = nn.Dropout(dr_rate)
        # Initialised by nn.Linear, as in the notebook, not with BERT's normal(0, 0.02).
        self.linear = nn.Linear(encoder.config.hidden_size, num_classes)

    def forward(self, batch: Batch) -> torch.Tensor:
        """A batch → logits (dialogues, classes), in the batch's order."""
        if self.pooling == "mean":
            summary = mean_of_texts(forward.states(self.encoder, batch), batch)
        else:
            states = forward.states(self.encoder, batch, batch.first)  # (dialogues, hidden)
            # A pooler takes a sequence and reads its first token.
            pooled = reads_texts(self.encoder)
            summary = self.encoder.pooler(states.unsqueeze(1)) if pooled else states
        # The linear layer stays float32 where the encoder's weights are bfloat16.
        return self.linear(self.dropout(summary).to(self.linear.weight.dtype))  # (batch, classes)


def reads_texts(encoder: nn.Module) -> bool:
    """Whether the encoder has a pooler that takes the states of texts, (texts, tokens, hidden)."""
    return hasattr(getattr(encoder, "pooler", None), "dense")


def drop_pooler(encoder: nn.Module) -> None:
    """Leave out the encoder's pooler, if it has one."""
    if getattr(encoder, "pooler", None) is not None:
        # A class that is never built without a pooler calls it always.
        encoder.pooler = None if may_lack_pooler(type(encoder)) else nn.Identity()


def may_lack_pooler(kind: type) -> bool:
    """Whether a model class can be built without its pooler."""
    return "add_pooling_layer" in signature(kind.__init__).parameters


def mean_of_texts(states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(tokens, hidden) → the mean over the tokens of each dialogue, float32 (dialogues, hidden)."""
    sums = torch.zeros(len(batch.lengths), states.shape[1], device=states.device)
    sums = sums.index_add(0, batch.text, states.float())  # (texts, hidden), filler texts last
    count = len(batch.first)
    return sums[:count] / batch.lengths[:count].unsqueeze(1)
