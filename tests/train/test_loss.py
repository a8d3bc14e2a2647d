"""The loss is torch's, with class weights and label smoothing, and history stays comparable."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from storyflower.common.errors import InputError
from storyflower.interim.tokens import TokenArrays
from storyflower.model.batch import make_batch
from storyflower.train.loss import Loss, balanced, make_loss
from tests.support import params_of
from tests.train.test_fit import CLASSES, Bag, fit, random_table, trained_batches, weights_of

OPTIONS = [
    {},
    {"class_weights": "balanced"},
    {"label_smoothing": 0.2},
    {"class_weights": "balanced", "label_smoothing": 0.1},
]


def uneven_table(rows: int = 60) -> TokenArrays:
    """As random_table, but of class 0 for the most part."""
    table = random_table(rows)
    labels = np.where(np.arange(rows) % 10 < 7, 0, np.where(np.arange(rows) % 10 < 9, 1, 2))
    return TokenArrays(table.ids, table.offsets, labels)


def torch_loss(logits: torch.Tensor, labels: np.ndarray, all_labels: np.ndarray, **values):
    """What torch's cross_entropy says of a batch."""
    weights = None
    if values.get("class_weights") == "balanced":
        by_class = compute_class_weight("balanced", classes=np.arange(CLASSES), y=all_labels)
        weights = torch.from_numpy(by_class).float()
    return functional.cross_entropy(
        logits,
        torch.from_numpy(labels),
        weight=weights,
        label_smoothing=values.get("label_smoothing", 0.0),
    )


@pytest.mark.parametrize("values", OPTIONS, ids=str)
def test_a_step_is_that_of_torch_s_weighted_mean(values: dict) -> None:
    """Of each batch, the last of which is short."""
    table = uneven_table(20)
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(Bag())
    ours, theirs = networks
    fit(ours, table, shuffle=False, warmup_ratio=0.0, **values)
    exempt = [p for p in theirs.parameters() if p.ndim < 2]
    decayed = [p for p in theirs.parameters() if p.ndim >= 2]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": exempt, "weight_decay": 0.0}])
    for step, start in enumerate((0, 8, 16)):
        batch = make_batch(table, np.arange(start, min(start + 8, 20)))
        optimizer.zero_grad()
        torch_loss(theirs(batch), batch.labels.numpy(), table.labels, **values).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * 0.5 * (1 + np.cos(np.pi * step / 3))
        optimizer.step()
    torch.testing.assert_close(weights_of(ours), weights_of(theirs), atol=1e-5, rtol=0)


def test_options_change_what_is_learned() -> None:
    table, ends = uneven_table(), []
    for values in OPTIONS:
        torch.manual_seed(0)
        network = Bag()
        fit(network, table, **values)
        ends.append(weights_of(network))
    for number, end in enumerate(ends):
        assert all((end - other).abs().max() > 1e-3 for other in ends[:number])


@pytest.mark.parametrize("values", OPTIONS, ids=str)
def test_the_loss_of_the_history_is_plain_cross_entropy(values: dict) -> None:
    """So that it stands beside test_loss, whatever is made small."""
    network, table = Bag(), uneven_table(20)
    found = trained_batches(network)
    (row,) = fit(network, table, **values)
    losses = [
        functional.cross_entropy(logits, torch.from_numpy(table.labels[rows]), reduction="sum")
        for rows, logits in found
    ]
    assert row.loss == pytest.approx(sum(losses).item() / 20, rel=1e-5)


def test_balanced_is_scikit_learn_s_over_the_rows_at_hand() -> None:
    labels = uneven_table(57).labels
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced(labels, 3), expected, rtol=1e-6)
    # A class without rows changes no other's weight.
    np.testing.assert_allclose(balanced(labels, 4), [*expected, 0], rtol=1e-6)


def test_rows_held_back_do_not_count_in_the_weights() -> None:
    from storyflower.model.device import choose
    from storyflower.train import fit as fit_module

    table, ends = uneven_table(60), []
    held = (table.labels == 0) & (np.arange(60) < 40)
    kept = np.flatnonzero(~held)
    alone = TokenArrays(
        np.concatenate([table.ids[table.offsets[r] : table.offsets[r + 1]] for r in kept]),
        np.concatenate([[0], np.cumsum(table.lengths[kept])]),
        table.labels[kept],
    )
    for train, mask in ((table, held), (alone, None)):
        torch.manual_seed(0)
        network = Bag()
        fit_module.fit(
            network,
            train=train,
            is_dev=mask,
            test=alone,
            params=params_of(
                num_epochs=1, batch_size=8, learning_rate=1e-2, optimizer="adamw", mask_rate=0.0,
                class_weights="balanced",
            ),
            placement=choose("cpu", "fp32"),
            on_epoch=lambda _: None,
        )  # fmt: skip
        ends.append(weights_of(network))
    assert torch.equal(*ends)


@pytest.mark.parametrize("values", OPTIONS, ids=str)
def test_the_blind_loss_is_the_least_of_one_answer_for_all(values: dict) -> None:
    labels = uneven_table(60).labels
    loss = make_loss(params_of(**values), labels, CLASSES)
    answer = torch.zeros(CLASSES, requires_grad=True)
    optimizer = torch.optim.LBFGS([answer], max_iter=200, tolerance_grad=1e-9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        mean = torch_loss(answer.expand(60, -1), labels, labels, **values)
        mean.backward()
        return mean

    optimizer.step(closure)
    assert loss.blind(labels) == pytest.approx(closure().item(), rel=1e-5)


def test_the_blind_loss_of_plain_cross_entropy_is_the_entropy() -> None:
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    entropy = -(0.6 * np.log(0.6) + 0.3 * np.log(0.3) + 0.1 * np.log(0.1))
    assert Loss(5).blind(labels) == pytest.approx(entropy)  # two classes have no row


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("class_weights", "sqrt", "one of none, balanced"),
        ("label_smoothing", 1, r"a number in \[0, 1\)"),
    ],
)
def test_what_is_refused(key: str, value: object, rule: str) -> None:
    with pytest.raises(InputError, match=f"{key} must be {rule}, got {value!r}"):
        params_of(**{key: value})
