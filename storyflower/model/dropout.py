"""Dropout with cheap random numbers on a CPU.

In: activations and a probability p.
Out: each value kept with probability 1 - p and scaled up, so that the mean does not change. On a
CPU, one random byte decides for each value, so p is rounded to a multiple of 1/256 (0.1 becomes
26/256 = 0.1016, 0.5 stays). The scale uses the rounded p, so the mean is exact. With torch's
bernoulli_, random numbers took 8% of a training step. Other devices use torch's kernel and exact p.
"""

import math

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
    cut = min(round(p * 256), 255)
    count = math.prod(shape)
    words = torch.empty(-(-count // 8), dtype=torch.int64).random_(ALL_INT64, None)
    # Compared as floating point, in place: torch's comparison of bytes took half of the time.
    values = words.view(torch.uint8)[:count].view(shape).to(dtype)  # 0 to 255 are exact in bfloat16
    return values.ge_(cut).mul_(256 / (256 - cut))
