"""Random [MASK] tokens in training, so that a model with few rows does not rely on single words."""

from dataclasses import replace

import torch

from storyflower.model.batch import Batch


def hide(batch: Batch, rate: float, mask_id: int) -> Batch:
    """Replace each token by [MASK] with probability `rate`, but never a text's first or last.

    Returns a new batch. Uses torch's random state on the batch's device.
    """
    inside = (batch.positions > 0) & (batch.positions < batch.lengths[batch.text] - 1)
    hidden = inside & (torch.rand(batch.ids.shape, device=batch.ids.device) < rate)
    return replace(batch, ids=torch.where(hidden, mask_id, batch.ids))
