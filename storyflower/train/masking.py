"""Tokens that [MASK] hides while training, so that a model of few rows relies on no single word."""

from dataclasses import replace

import torch

from storyflower.model.batch import Batch


def hide(batch: Batch, rate: float, mask_id: int) -> Batch:
    """The batch with each token hidden with probability `rate`; a text's first and last never.

    By torch's random state on the batch's device.
    """
    inside = (batch.positions > 0) & (batch.positions < batch.lengths[batch.text] - 1)
    hidden = inside & (torch.rand(batch.ids.shape, device=batch.ids.device) < rate)
    return replace(batch, ids=torch.where(hidden, mask_id, batch.ids))
