"""What is learned: masked tokens, and from the first token the labels of the texts that have one.

In: a batch of texts end to end.
Out: a loss. Devlin et al. 2019: of the chosen tokens 80% become [MASK], 10% another token, 10%
stay; only they go through the output layer, whose matrix is the embeddings'. Without the labels
nothing would train the first token's state, which is what a classifier reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from pretrain.texts import NO_LABEL
from pretrain.vocabulary import MASK_ID, SPECIAL
from storyflower.model import forward
from storyflower.model.batch import Batch

STEP = 32  # hidden tokens


@dataclass(frozen=True)
class Masked:
    """A batch whose ids hide some of its tokens, and what they were."""

    batch: Batch
    indices: torch.Tensor  # (masked,) int64: which tokens of the batch
    targets: torch.Tensor  # (masked,) int64: their ids


def mask(batch: Batch, share: float, vocabulary: int) -> Masked:
    """Hide about a share of the ordinary tokens, by torch's random state; at least one of them.

    Ordinary are all but the five special ones, so [UNK] is not; the batch must have one. From 32 on
    their number is rounded down to a multiple of 32: a matrix library on a CPU prepares itself anew
    for each shape.
    """
    ids = batch.ids
    inside = batch.text < len(batch.first)  # the texts that fill up come last
    ordinary = ((ids >= len(SPECIAL)) & inside).nonzero().squeeze(1)
    count = max(1, round(share * len(ordinary)))
    count = min(max(count // STEP * STEP, min(count, STEP)), len(ordinary))
    order = torch.rand(len(ordinary), device=ids.device).argsort()
    indices = ordinary[order[:count]].sort().values
    kind = torch.rand(indices.shape, device=ids.device)
    random_ids = torch.randint(len(SPECIAL), vocabulary, indices.shape, device=ids.device)
    shown = torch.where(kind < 0.8, MASK_ID, torch.where(kind < 0.9, random_ids, ids[indices]))
    return Masked(
        batch=replace(batch, ids=ids.index_copy(0, indices, shown)),
        indices=indices,
        targets=ids[indices],
    )


class PretrainingModel(nn.Module):
    """An encoder with the heads that are left behind when it is saved."""

    def __init__(self, encoder: PreTrainedModel, tasks: Sequence[int]):
        super().__init__()
        hidden, vocabulary = encoder.config.hidden_size, encoder.config.vocab_size
        self.encoder = encoder
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=encoder.config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.heads = nn.ModuleList(nn.Linear(hidden, classes) for classes in tasks)

    def forward(self, masked: Masked) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Two losses, means in nats, and logits.

        The loss of the masked tokens, that of the labelled texts (0 where there is none), and the
        masked tokens' logits (masked, vocabulary).
        """
        batch = masked.batch
        labelled = (batch.labels != NO_LABEL).nonzero().squeeze(1)
        at = torch.cat([masked.indices, batch.first[labelled]])
        states = forward.states(self.encoder, batch, at)  # (masked + labelled, hidden)
        hidden, firsts = states.split([len(masked.indices), len(labelled)])
        hidden = self.norm(functional.gelu(self.dense(hidden)))
        embeddings = self.encoder.get_input_embeddings().weight
        logits = functional.linear(hidden, embeddings, self.bias).float()
        token_loss = functional.cross_entropy(logits, masked.targets)
        return token_loss, self.label_loss(firsts, batch.labels[labelled]), logits

    def label_loss(self, firsts: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of labelled texts, each among the labels of its own task; 0 if none.

        `firsts` (texts, hidden), `labels` (texts,) as pretrain/texts.py numbers them.
        """
        loss = firsts.new_zeros((), dtype=torch.float32)
        start = 0
        for head in self.heads:
            mine = (labels >= start) & (labels < start + head.out_features)
            if mine.any():
                logits = head(firsts[mine]).float()
                loss = loss + functional.cross_entropy(
                    logits, labels[mine] - start, reduction="sum"
                )
            start += head.out_features
        return loss / max(1, len(labels))
