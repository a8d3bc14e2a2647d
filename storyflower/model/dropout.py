"""Dropout whose random numbers are cheap on a CPU.

In: activations and a probability p.
Out: each value kept with probability 1 - p and scaled up, so that the mean stays. On a CPU one
random byte decides about a value: p becomes the nearest 256th (0.1 becomes 26/256 = 0.1016, 0.5
stays), and the scale fits the p that is used, so the mean stays exactly. torch's bernoulli_ was
8% of a training step. On other devices torch's own kernel, with the exact p.
"""

import math

import torch
from torch.nn import functional

ALL_INT64 = -(2**63)  # from here without an upper end, random_ fills all 64 bits


def dropout(values: torch.Tensor, p: float) -> torch.Tensor:
    """Values kept with probability 1 - p and divided by it, the others 0; any shape."""
    if p == 0:
        return values
    if values.device.type != "cpu":
        return functional.dropout(values, p)
    return values * scale_mask(values.shape, p, values.dtype)


def scale_mask(shape: torch.Size, p: float, dtype: torch.dtype) -> torch.Tensor:
    """0 with probability p (in 256ths), else 1 / (1 - p); on the CPU, of any shape."""
    cut = min(round(p * 256), 255)
    count = math.prod(shape)
    words = torch.empty(-(-count // 8), dtype=torch.int64).random_(ALL_INT64, None)
    kept = words.view(torch.uint8)[:count].view(shape) >= cut
    return kept.to(dtype).mul_(256 / (256 - cut))
