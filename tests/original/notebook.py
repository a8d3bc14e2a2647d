"""The original notebook's training, written afresh from its description; the oracle of ours.

Eager attention, fp32, every text padded to max_len, rows in the order of the file, a pooler,
dropout (off here), a linear layer, cross-entropy, the AdamW of transformers 3, its cosine schedule
with warm-up, gradients clipped to a norm of 1.
"""

import math

import torch
from torch import nn
from transformers import BertModel, get_cosine_schedule_with_warmup


class AdamW(torch.optim.Optimizer):
    """transformers 3's AdamW: eps is added to the root of v before the bias correction."""

    def __init__(self, groups, lr, eps=1e-6, betas=(0.9, 0.999)):
        super().__init__(groups, {"lr": lr, "eps": eps, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["t"] = 0
                    state["m"] = torch.zeros_like(parameter)
                    state["v"] = torch.zeros_like(parameter)
                state["t"] += 1
                m, v, t = state["m"], state["v"], state["t"]
                m.mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
                v.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                size = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
                parameter.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-size)
                # Decay comes after the update, on the new value.
                parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])


class BertClassifier(nn.Module):
    """The notebook's class: bert, dropout, linear."""

    def __init__(self, bert: BertModel, classes: int):
        super().__init__()
        self.bert = bert
        self.classifier = nn.Linear(bert.config.hidden_size, classes)

    def forward(self, token_ids, valid_length, segment_ids):
        attention_mask = torch.zeros_like(token_ids)
        for row, length in enumerate(valid_length):
            attention_mask[row][:length] = 1
        _, pooler = self.bert(
            input_ids=token_ids,
            token_type_ids=segment_ids.long(),
            attention_mask=attention_mask.float(),
            return_dict=False,
        )
        return self.classifier(pooler)


def train(model, batches, *, learning_rate, warmup_ratio, weight_decay, max_grad_norm):
    """One epoch over (token_ids, valid_length, segment_ids, labels); the loss of every step."""
    exempt = ("bias", "LayerNorm.bias", "LayerNorm.weight")
    named = list(model.named_parameters())
    groups = [
        {
            "params": [p for n, p in named if not any(e in n for e in exempt)],
            "weight_decay": weight_decay,
        },
        {"params": [p for n, p in named if any(e in n for e in exempt)], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=learning_rate)
    total = len(batches)
    scheduler = get_cosine_schedule_with_warmup(optimizer, int(total * warmup_ratio), total)
    model.train()  # every dropout of the model it is given is 0
    losses = []
    for token_ids, valid_length, segment_ids, labels in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(token_ids, valid_length, segment_ids), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses
