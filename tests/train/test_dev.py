"""The part of Training that is held back, hidden tokens, and a training that learns nothing."""

import numpy as np
import pytest
import torch

from storyflower.common.errors import InputError
from storyflower.interim.history import Epoch, best_epoch, read_history, write_history
from storyflower.interim.tokens import TokenArrays
from storyflower.model.batch import make_batch
from storyflower.model.device import choose
from storyflower.train import fit as fit_module
from storyflower.train.checkpoint import Checkpoints
from storyflower.train.collapse import LossWatch
from storyflower.train.dev import held_back, take
from storyflower.train.masking import hide
from tests.support import params_of
from tests.train.test_fit import CLASSES, Bag, random_table, trained_batches


def rows_of(tokens: TokenArrays) -> list[tuple]:
    return [
        (*tokens.ids[start:stop].tolist(), int(label))
        for start, stop, label in zip(
            tokens.offsets, tokens.offsets[1:], tokens.labels, strict=False
        )
    ]


def test_a_share_of_each_class_in_any_order_of_the_file() -> None:
    table = random_table(3000)
    held = held_back(table, 0.1, seed=1)
    for label in range(CLASSES):
        mine = table.labels == label
        assert held[mine].sum() == pytest.approx(0.1 * mine.sum(), abs=2)
    shuffled = np.random.default_rng(3).permutation(3000)
    pieces = [table.ids[table.offsets[row] : table.offsets[row + 1]] for row in shuffled]
    offsets = np.concatenate([[0], np.cumsum(table.lengths[shuffled])])
    other = TokenArrays(np.concatenate(pieces), offsets, table.labels[shuffled])
    assert (held_back(other, 0.1, seed=1) == held[shuffled]).all()
    assert (held_back(table, 0.1, seed=2) != held).any()
    assert sorted(rows_of(take(table, held)) + rows_of(take(table, ~held))) == sorted(
        rows_of(table)
    )


def test_equal_texts_are_on_one_side_whatever_their_class() -> None:
    table = random_table(400)
    twice = TokenArrays(
        np.concatenate([table.ids, table.ids]),
        np.concatenate([table.offsets, table.offsets[1:] + table.offsets[-1]]),
        np.concatenate([table.labels, (table.labels + 1) % CLASSES]),
    )
    held = held_back(twice, 0.3, seed=1)
    assert 0.2 < held.mean() < 0.4
    assert (held[:400] == held[400:]).all()


def test_a_side_may_not_be_empty() -> None:
    with pytest.raises(InputError, match="dev_share 0.01 of 6 rows leaves a side empty"):
        held_back(random_table(6), 0.01, seed=1)


def fit(
    network: torch.nn.Module, checkpoints: Checkpoints | None = None, dev: bool = True, **values
) -> list[Epoch]:
    """fit() on 64 rows, and 30 held back whose classes have nothing to do with those of the 64."""
    train, other = random_table(64), random_table(30, seed=2)
    together = TokenArrays(
        np.concatenate([train.ids, other.ids]),
        np.concatenate([train.offsets, other.offsets[1:] + train.offsets[-1]]),
        np.concatenate([train.labels, other.labels]),
    )
    if not dev:
        together = train
    rate = {
        "learning_rate": 2e-2,
        "optimizer": "adamw",
        "mask_rate": 0.0,
        "batch_size": 8,
        "dev_share": 0.1,
    }
    return fit_module.fit(
        network,
        train=together,
        test=random_table(30, seed=1),
        is_dev=np.arange(94) >= 64 if dev else None,
        params=params_of(**{**rate, "num_epochs": 6, **values}),
        placement=choose("cpu", "fp32"),
        on_epoch=lambda _: None,
        mask_id=4,
        checkpoints=checkpoints,
    ).history


def test_best_keeps_the_weights_of_the_best_epoch() -> None:
    torch.manual_seed(5)
    last = Bag()
    history = fit(last)
    best = best_epoch(history)
    assert best < 6, "the seed must give an example"
    assert history[best - 1].dev_accuracy == max(row.dev_accuracy for row in history)
    torch.manual_seed(5)
    kept = Bag()
    assert [row.test_loss for row in fit(kept, keep="best")] == [row.test_loss for row in history]
    batch = make_batch(random_table(30, seed=2), np.arange(30))
    with torch.no_grad():
        right = (kept.eval()(batch).argmax(dim=1) == batch.labels).sum().item()
    assert right / 30 == history[best - 1].dev_accuracy
    assert any((a != b).any() for a, b in zip(kept.parameters(), last.parameters(), strict=True))


def test_patience_ends_a_training_that_gets_no_better() -> None:
    torch.manual_seed(5)
    whole = fit(Bag(), num_epochs=12)
    torch.manual_seed(5)
    history = fit(Bag(), num_epochs=12, patience=2)
    best = best_epoch(history)
    assert len(history) == best + 2 < 12
    assert [row.dev_loss for row in history] == [row.dev_loss for row in whole[: best + 2]]


def test_what_is_kept_survives_a_death(tmp_path) -> None:
    torch.manual_seed(5)
    whole = Bag()
    history = fit(whole, keep="best")

    def run(network: torch.nn.Module, die_after: int) -> list[Epoch]:
        with Checkpoints(tmp_path, "0" * 64, minutes=60) as checkpoints:
            save = checkpoints.after_epoch

            def after_epoch(state) -> None:
                save(state)
                if state.epoch == die_after:
                    raise KeyboardInterrupt

            checkpoints.after_epoch = after_epoch
            return fit(network, checkpoints, keep="best")

    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        run(Bag(), die_after=best_epoch(history) + 1)  # when the best epoch is a thing of the past
    resumed = Bag()
    assert [row.dev_loss for row in run(resumed, die_after=99)] == [row.dev_loss for row in history]
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"keep": "best"}, "keep: best needs a dev part; set dev_share, such as 0.1"),
        ({"patience": 2}, "patience needs a dev part; set dev_share, such as 0.1"),
    ],
)
def test_what_needs_a_dev_part_says_so(values, expected) -> None:
    with pytest.raises(InputError, match=expected):
        params_of(**values)
    params_of(**values, dev_share=0.1)


def test_history_has_columns_for_a_dev_part_that_is_there(tmp_path) -> None:
    row = Epoch(1, 1.0, 0.5, 1.1, 0.4, 2.0, 100)
    path = tmp_path / "history.csv"
    write_history([row], path)
    assert path.read_text().splitlines()[0].endswith("seconds,tokens")
    write_history([Epoch(1, 1.0, 0.5, 1.1, 0.4, 2.0, 100, 0.9, 0.6)], path)
    assert read_history(path)[0]["dev_accuracy"] == 0.6


def test_hidden_tokens() -> None:
    batch = make_batch(random_table(500), np.arange(500), token_step=64)
    torch.manual_seed(1)
    hidden = hide(batch, 0.3, mask_id=4)
    changed = hidden.ids != batch.ids
    assert (hidden.ids[changed] == 4).all()
    ends = batch.first + batch.lengths[: len(batch.first)] - 1
    assert not changed[batch.first].any() and not changed[ends].any()
    inside = int((batch.lengths - 2).clamp(min=0).sum())
    assert changed.sum().item() / inside == pytest.approx(0.3, abs=0.03)


def test_training_hides_tokens_anew_each_step_and_testing_none() -> None:
    seen: list[tuple[bool, int]] = []

    class Spy(Bag):
        def forward(self, batch):
            seen.append((self.training, int((batch.ids == 4).sum())))
            return super().forward(batch)

    fit(Spy(), num_epochs=2, mask_rate=0.5)
    trained = [count for training, count in seen if training]
    assert all(trained) and len(set(trained)) > 3
    assert not any(count for training, count in seen if not training)
    seen.clear()
    fit(Spy(), num_epochs=1)
    assert not any(count for _, count in seen)


def test_equal_predictions_for_all_are_said(capsys) -> None:
    class Stubborn(Bag):
        def forward(self, batch):
            return super().forward(batch) * 0 + torch.tensor([1.0, 0.0, 0.0])

    fit(Stubborn(), num_epochs=7, learning_rate=3e-3)  # of 8 steps
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1  # not after the first epochs, when little was learned yet
    assert said[0].startswith("WARNING: epoch 7 gives all 30 Validation dialogues one class")
    assert "learning_rate 0.001 (it is 0.003)" in said[0]
    fit(Stubborn(), num_epochs=3)  # too few steps to be judged
    fit(Bag(), num_epochs=7)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("share", "expected"), [(1.0, 1), (0.99, 1), (0.9, 0)])
def test_a_loss_that_stays_at_the_entropy_is_said_once(capsys, share: float, expected: int) -> None:
    entropy = -(0.6 * np.log(0.6) + 0.3 * np.log(0.3) + 0.1 * np.log(0.1))
    watch = LossWatch(entropy, warmup=50, rate=1e-3)
    rng = np.random.default_rng(1)
    for done in range(400):
        loss = entropy * (share if done >= 150 else 1.5) + rng.normal(0, 0.05)
        watch.step(done, torch.tensor(loss))
    said = capsys.readouterr().err
    assert said.count("WARNING: after 250 steps the loss is") == said.count("\n") == expected


def test_rows_held_back_change_nothing_else() -> None:
    """The batches and the weights are those of a training on the others alone."""
    networks, batches = [], []
    for dev in (True, False):
        torch.manual_seed(1)
        networks.append(Bag())
        batches.append(trained_batches(networks[-1]))
        fit(networks[-1], dev=dev, num_epochs=2)
    assert [rows.tolist() for rows, _ in batches[0]] == [rows.tolist() for rows, _ in batches[1]]
    for ours, theirs in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(ours, theirs)


def test_fit_itself_refuses_to_choose_by_nothing() -> None:
    with pytest.raises(ValueError, match="held back"):
        fit(Bag(), dev=False, keep="best")
