"""AdamW, torch's or the notebook's, the cosine schedule with warm-up, and each layer's rate."""

import math

import torch
from torch import nn

from storyflower.common.errors import InputError


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
    """Set the learning rates, and for the notebook's optimizer the eps, of the next update.

    A group's rate is `rate` times the group's own scale (make_optimizer).

    `notebook` is the AdamW of transformers 3, which adds eps = 1e-6 to the root of v before the
    bias correction, where torch adds it after. At update t the corrected root is
    sqrt(v) / sqrt(1 - beta2^t), so an eps larger by the same factor gives the same result.
    `done` is the number of steps before this one.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
        if name == "notebook":
            update = done + 1
            if scaler.is_enabled():
                # The scaler skips some updates, so read the optimizer's own count, although that
                # waits for the device.
                state = optimizer.state.get(group["params"][0], {})
                update = int(state.get("step", 0)) + 1
            group["eps"] = 1e-6 / math.sqrt(1 - group["betas"][1] ** update)


def make_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    device: torch.device,
    *,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW, with weight decay on all parameters but biases and the weights of norms.

    Those, of whatever kind, have fewer than two dimensions. With a `layer_decay` below 1, each
    layer has groups of its own, with the `scale` of its rate (layer_scales). Raises InputError if
    model.encoder has no layers that can be told apart.
    """
    scales = {} if layer_decay == 1 else layer_scales(model.encoder, layer_decay)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for decays in (True, False):
        for parameter in model.parameters():
            if (parameter.ndim >= 2) == decays:
                groups.setdefault((scales.get(id(parameter), 1.0), decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": mine, "weight_decay": weight_decay if decays else 0.0, "scale": scale}
            for (scale, decays), mine in groups.items()
        ],
        lr=learning_rate,
        fused=device.type in ("cpu", "cuda"),
    )


def layer_scales(encoder: nn.Module, decay: float) -> dict[int, float]:
    """The share of the peak rate of each parameter of an encoder, by its id().

    decay to the power of the distance from the top: 1 for what comes after the layers (a final
    norm, a pooler), decay for the last layer, and so on down to decay^(layers + 1) for what comes
    before them. ELECTRA's fine-tuning did so (Clark et al., 2020); these powers are BEiT's (Bao et
    al., 2022), whose last layer has the first power.
    """
    name, layers = numbered_layers(encoder)
    beside = name.rpartition(".")[0]
    scales, met, rest = {}, False, len(layers) + 1
    for key, parameter in encoder.named_parameters():
        owner = key.rpartition(".")[0]
        if key.startswith(f"{name}."):
            number = int(key.removeprefix(f"{name}.").partition(".")[0])
            scales[id(parameter)] = decay ** (len(layers) - number)
            met, rest = True, 0
            continue
        if key.startswith("pooler."):  # which some models register before their layers
            scales[id(parameter)] = 1.0
            continue
        if isinstance(encoder.get_submodule(owner), nn.Embedding):
            # DeBERTa and MPNet have a table of distances behind the layers, and a norm for it.
            rest = len(layers) + 1
        elif met and not key.startswith(beside):
            rest = 0
        scales[id(parameter)] = decay**rest
    return scales


def numbered_layers(encoder: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of an encoder's layers and its name, such as encoder.layer; raises InputError."""
    count = getattr(encoder.config, "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if lists:
        name, layers = max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
        weights = [id(parameter) for layer in layers for parameter in layer.parameters()]
        # XLM's layers lie in parallel lists: attentions, norms, products.
        one = all(other == name or other.startswith(f"{name}.") for other, _ in lists)
        if one and len(set(weights)) == len(weights) > 0:
            return name, layers
    raise InputError(
        f"layer_decay: an encoder of type {encoder.config.model_type!r} has no numbered layers "
        "with weights of their own; set layer_decay: 1.0"
    )
