"""Encoder + dropout + linear → logits."""

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
    (KoBERT), else the last hidden state of the first token. ELECTRA and DistilBERT never have a
    pooler; nor do BERT and RoBERTa models that were pretrained only on masked words
    (klue/roberta-base). With "mean", it is the mean of the last hidden states of all tokens, [CLS]
    and [SEP] included, and the encoder's pooler is dropped.
    """

    def __init__(
        self, encoder: nn.Module, num_classes: int, dr_rate: float, pooling: "Pooling" = "first"
    ):
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        if pooling == "mean" and getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        self.dropout = nn.Dropout(dr_rate)
        # Initialised by nn.Linear, as in the notebook, not with BERT's normal(0, 0.02).
        self.linear = nn.Linear(encoder.config.hidden_size, num_classes)

    def forward(self, batch: Batch) -> torch.Tensor:
        """A batch → logits (dialogues, classes), in the batch's order."""
        if self.pooling == "mean":
            summary = mean_of_texts(forward.states(self.encoder, batch), batch)
        else:
            states = forward.states(self.encoder, batch, batch.first)  # (dialogues, hidden)
            pooler = getattr(self.encoder, "pooler", None)
            # A pooler takes a sequence and reads its first token.
            summary = states if pooler is None else pooler(states.unsqueeze(1))
        # The linear layer stays float32 where the encoder's weights are bfloat16.
        return self.linear(self.dropout(summary).to(self.linear.weight.dtype))  # (batch, classes)


def mean_of_texts(states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(tokens, hidden) → the mean over the tokens of each dialogue, float32 (dialogues, hidden)."""
    sums = torch.zeros(len(batch.lengths), states.shape[1], device=states.device)
    sums = sums.index_add(0, batch.text, states.float())  # (texts, hidden), filler texts last
    count = len(batch.first)
    return sums[:count] / batch.lengths[:count].unsqueeze(1)
