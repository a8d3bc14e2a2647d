"""Linear layers in bfloat16, against what autocast gives."""

import pytest
import torch
from torch import nn

from storyflower.model.linear import in_bfloat16

ROWS, COLUMNS = 70, 24


@pytest.mark.parametrize("sizes", [[16], [8, 8, 16]])
def test_results_and_gradients_are_autocasts(sizes: list[int]) -> None:
    torch.manual_seed(0)
    parts = tuple(nn.Linear(COLUMNS, size) for size in sizes)
    rows = torch.randn(ROWS, COLUMNS).bfloat16().requires_grad_()
    toward = torch.randn(ROWS, sum(sizes)).bfloat16()
    found = []
    for way in ("autocast", "ours"):
        if way == "ours":
            result = in_bfloat16(rows, parts)
        else:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                result = torch.cat([part(rows) for part in parts], dim=1)
        wanted = [rows, *(parameter for part in parts for parameter in part.parameters())]
        found.append([result, *torch.autograd.grad(result, wanted, toward)])
    for theirs, ours in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        # One rounding to bfloat16: 8 bits of a number
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-7)


def test_torchs_own_way_elsewhere() -> None:
    layer, rows = nn.Linear(COLUMNS, 3), torch.randn(ROWS, COLUMNS)
    assert in_bfloat16(rows, (layer,)) is None  # float32
    assert in_bfloat16(rows.bfloat16(), (nn.Identity(),)) is None
    assert in_bfloat16(rows.bfloat16(), (nn.Linear(COLUMNS, 3).bfloat16(),)) is None
    with torch.no_grad():
        assert in_bfloat16(rows.bfloat16(), (layer,)) is None
    assert in_bfloat16(rows.bfloat16(), (layer,)) is not None
