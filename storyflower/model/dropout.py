"""Dropout with cheap random numbers on a CPU.

In: activations and a probability p.
Out: each value kept with probability 1 - p and scaled up, so that the mean does not change. On a
CPU, one random byte decides for each value, so p is rounded to a multiple of 1/256 (0.1 becomes
26/256 = 0.1016, 0.5 stays). The scale uses the rounded p, so the mean is exact. With torch's
bernoulli_, random numbers took 8% of a training step. Other devices use torch's kernel and exact p.
"""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

ALL_INT64 = -(2**63)  # as random_'s lower bound, without an upper bound: all 64 bits are random


def dropout(values: torch.Tensor, p: float) -> torch.Tensor:
    """Keep each value with probability 1 - p and divide it by 1 - p; else 0. Any shape."""
    if p == 0:
        return values
    if values.device.type != "cpu":
        return functional.dropout(values, p)
    return values * scale_mask(values.shape, p, values.dtype)


def scale_mask(shape: torch.Size, p: float, dtype: torch.dtype) -> torch.Tensor:
    """A CPU tensor: 0 with probability p (rounded to 1/256), else 1 / (1 - p). Any shape."""
    (mask,) = scale_masks([shape], p, dtype)
    return mask


def scale_masks(shapes: Sequence[torch.Size], p: float, dtype: torch.dtype) -> list[torch.Tensor]:
    """The scale_mask of each shape, drawn together: the same numbers as one after the other."""
    cut = min(round(p * 256), 255)
    counts = list(map(math.prod, shapes))
    words = [-(-count // 8) for count in counts]
    drawn = torch.empty(sum(words), dtype=torch.int64).random_(ALL_INT64, None)
    # Compared as floating point, in place: torch's comparison of bytes took half of the time.
    values = drawn.view(torch.uint8).to(dtype)  # 0 to 255 are exact in bfloat16
    values.ge_(cut).mul_(256 / (256 - cut))
    mine = values.split([8 * count for count in words])
    return [part[:n].view(shape) for part, n, shape in zip(mine, counts, shapes, strict=True)]
