"""AdamW, torch's or the notebook's, and the cosine schedule with warm-up."""

import math

import torch
from torch import nn


def schedule(step: int, warmup: int, total: int) -> float:
    """Share of the peak rate at `step` (from 0): linear from 0 to 1, then half a cosine down to 0.

    The same as transformers' get_cosine_schedule_with_warmup, which the notebook used.
    """
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def prepare_update(
    optimizer: torch.optim.Optimizer,
    *,
    rate: float,
    name: str,
    done: int,
    scaler: torch.amp.GradScaler,
) -> None:
    """Set the learning rate, and for the notebook's optimizer the eps, of the next update.

    `notebook` is the AdamW of transformers 3, which adds eps = 1e-6 to the root of v before the
    bias correction, where torch adds it after. At update t the corrected root is
    sqrt(v) / sqrt(1 - beta2^t), so an eps larger by the same factor gives the same result.
    `done` is the number of steps before this one.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
        if name == "notebook":
            update = done + 1
            if scaler.is_enabled():
                # The scaler skips some updates, so read the optimizer's own count, although that
                # waits for the device.
                state = optimizer.state.get(group["params"][0], {})
                update = int(state.get("step", 0)) + 1
            group["eps"] = 1e-6 / math.sqrt(1 - group["betas"][1] ** update)


def make_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW with weight decay on all parameters except biases and LayerNorm weights."""
    exempt = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, nn.LayerNorm) or name.endswith("bias")
    }
    decayed = [p for p in model.parameters() if id(p) not in exempt]
    others = [p for p in model.parameters() if id(p) in exempt]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=device.type in ("cpu", "cuda"))
