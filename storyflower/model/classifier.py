"""Encoder + dropout + linear → logits."""

import torch
from torch import nn

from storyflower.model import forward
from storyflower.model.batch import Batch


class EmotionClassifier(nn.Module):
    """The notebook's classifier: the encoder's summary of a text, dropout, one linear layer.

    The summary is the pooler's output if the checkpoint has a pooler (KoBERT), else the last hidden
    state of the first token. ELECTRA and DistilBERT never have a pooler; nor do BERT and RoBERTa
    models that were pretrained only on masked words (klue/roberta-base).
    """

    def __init__(self, encoder: nn.Module, num_classes: int, dr_rate: float):
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dr_rate)
        # Initialised by nn.Linear, as in the notebook, not with BERT's normal(0, 0.02).
        self.linear = nn.Linear(encoder.config.hidden_size, num_classes)

    def forward(self, batch: Batch) -> torch.Tensor:
        """A batch → logits (dialogues, classes), in the batch's order."""
        states = forward.states(self.encoder, batch, batch.first)  # (dialogues, hidden)
        pooler = getattr(self.encoder, "pooler", None)
        # A pooler takes a sequence and reads its first token.
        summary = states if pooler is None else pooler(states.unsqueeze(1))
        return self.linear(self.dropout(summary))  # (batch, classes)
