"""Attention without padding, by both of its ways, against the textbook's; and cheap dropout."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storyflower.interim.tokens import TokenArrays
from storyflower.model import attention
from storyflower.model.attention import GroupedAttention, in_one_kernel, in_rectangle, lay_out
from storyflower.model.batch import Batch, make_batch
from storyflower.model.dropout import dropout, scale_mask

HEADS, SIZE = 2, 4


def batch_of(lengths: list[int]) -> Batch:
    """Texts of these lengths, in the table's order."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(offsets[-1], dtype=np.int64)
    table = TokenArrays(ids, offsets, np.zeros(len(lengths), np.int64))
    return make_batch(table, np.arange(len(lengths)))


def textbook(qkv: torch.Tensor, batch: Batch) -> torch.Tensor:
    """softmax(q k / sqrt(d)) v, text by text and head by head."""
    rows = []
    for part in qkv.split(batch.lengths.tolist()):
        query, key, value = part.view(len(part), 3, HEADS, SIZE).unbind(1)
        heads = [
            torch.softmax(query[:, h] @ key[:, h].T / SIZE**0.5, dim=-1) @ value[:, h]
            for h in range(HEADS)
        ]
        rows.append(torch.cat(heads, dim=1))
    return torch.cat(rows)


def grouped(qkv: torch.Tensor, batch: Batch) -> torch.Tensor:
    return GroupedAttention.apply(qkv, lay_out(batch, HEADS, qkv.dtype), 0.0)


def rectangle(qkv: torch.Tensor, batch: Batch) -> torch.Tensor:
    return in_rectangle(batch, HEADS)(qkv, 0.0)


@pytest.mark.parametrize("attend", [grouped, rectangle])
@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7), seed=st.integers(0, 99))
def test_value_and_gradient_are_the_textbooks(attend, lengths: list[int], seed: int) -> None:
    batch = batch_of(lengths)
    torch.manual_seed(seed)
    qkv = torch.randn(sum(lengths), 3 * HEADS * SIZE, dtype=torch.float64, requires_grad=True)
    toward = torch.randn(sum(lengths), HEADS * SIZE, dtype=torch.float64)
    results = [way(qkv, batch) for way in (attend, textbook)]
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad((r * toward).sum(), qkv)[0] for r in results]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


@pytest.fixture(params=[1, 4], ids=["whole", "padded"])
def step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """What widths are rounded up to, in float64; bfloat16's rounding would hide an error."""
    monkeypatch.setitem(attention.GROUP_STEP, torch.float64, request.param)
    return request.param


def test_gradient_with_dropout_is_the_derivative(step: int) -> None:
    """Against finite differences: every call draws the same weights to drop."""
    batch = batch_of([3, 1, 4, 3])
    torch.manual_seed(0)
    qkv = torch.randn(11, 3 * HEADS * SIZE, dtype=torch.float64, requires_grad=True)

    def attend(values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)
        return GroupedAttention.apply(values, lay_out(batch, HEADS, values.dtype), 0.4)

    assert torch.autograd.gradcheck(attend, (qkv,))
    assert not torch.allclose(attend(qkv), grouped(qkv, batch))


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=7), seed=st.integers(0, 99))
def test_pads_change_nothing(lengths: list[int], seed: int) -> None:
    batch = batch_of(lengths)
    torch.manual_seed(seed)
    qkv = torch.randn(len(batch.ids), 3 * HEADS * SIZE, dtype=torch.float64, requires_grad=True)
    toward = torch.randn(len(batch.ids), HEADS * SIZE, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(attention.GROUP_STEP, torch.float64, 16)
        layout = lay_out(batch, HEADS, torch.float64)
    assert {width % 16 for _, width in layout.groups} == {0}
    with torch.no_grad():
        results = [in_one_kernel(qkv, layout), textbook(qkv, batch)]
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)
    results = [GroupedAttention.apply(qkv, layout, 0.0), textbook(qkv, batch)]
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad((r * toward).sum(), qkv)[0] for r in results]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_few_groups_in_bfloat16() -> None:
    batch = batch_of([*range(1, 65), 32])  # no filler: 2,112 tokens are 33 times 64
    assert len(lay_out(batch, HEADS, torch.float32).groups) == 64
    assert len(lay_out(batch, HEADS, torch.bfloat16).groups) == 4


def test_no_text_sees_another() -> None:
    batch = batch_of([2, 3, 3])
    qkv = torch.randn(8, 3 * HEADS * SIZE)
    changed = qkv.clone()
    changed[5:] += 1
    for attend in (grouped, rectangle):
        assert torch.equal(attend(qkv, batch)[:5], attend(changed, batch)[:5])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_the_share(p: float) -> None:
    torch.manual_seed(1)
    mask = scale_mask(torch.Size([1000, 1001]), p, torch.float32)
    used = round(p * 256) / 256
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - used)])
    # 1,001,000 draws: four standard errors
    assert (mask == 0).double().mean().item() == pytest.approx(
        used, abs=4 * (used * (1 - used) / 1_001_000) ** 0.5
    )
    # Neighbours, which come out of the same 64 bits, know nothing of each other.
    together = ((mask[:, 1:] == 0) & (mask[:, :-1] == 0)).double().mean().item()
    assert together == pytest.approx(used**2, abs=0.003)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.999])
def test_a_byte_below_the_cut_drops(p: float, dtype: torch.dtype) -> None:
    """In every type: the bytes are the same, and 0 to 255 are exact in each."""
    torch.manual_seed(3)
    words = torch.empty(500, dtype=torch.int64).random_(-(2**63), None)
    cut = min(round(p * 256), 255)
    kept = torch.from_numpy(words.numpy().view(np.uint8) >= cut)
    torch.manual_seed(3)
    mask = scale_mask(torch.Size([4000]), p, dtype)
    assert mask.dtype == dtype
    assert torch.equal(mask != 0, kept)
    assert torch.equal(mask[kept], torch.full_like(mask[kept], 256 / (256 - cut)))


def test_dropout_repeats_with_the_seed() -> None:
    values = torch.randn(40, 40)
    torch.manual_seed(7)
    first = dropout(values, 0.3)
    second = dropout(values, 0.3)
    torch.manual_seed(7)
    assert torch.equal(first, dropout(values, 0.3))
    assert not torch.equal(first, second)
    assert dropout(values, 0) is values
