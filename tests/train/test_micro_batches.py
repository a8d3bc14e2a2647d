"""Steps in parts: the whole batch's gradients, and what an out-of-memory does."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModel

from storyflower.common.errors import InputError
from storyflower.interim.tokens import TokenArrays
from storyflower.model.batch import Batch, make_batch
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.device import Placement
from storyflower.model.processes import ALONE, Ranks
from storyflower.tracking import mlflow
from storyflower.tracking.record import Record
from storyflower.train import micro_batches, run
from storyflower.train.checkpoint import Checkpoints
from storyflower.train.micro_batches import can_record, split
from storyflower.train.state import State
from tests.support import TINY_PARAMS, params_of
from tests.train import test_checkpoint as saved
from tests.train.test_fit import (
    FAMILIES,
    Bag,
    build_classifier,
    encoder_folder,
    fit,
    random_table,
    trained_batches,
    weights_of,
)


@given(lengths=st.lists(st.integers(3, 64), min_size=1, max_size=70), most=st.integers(1, 70))
def test_few_parts_of_about_as_many_tokens(lengths: list[int], most: int) -> None:
    rows = np.random.default_rng(0).permutation(1000)[: len(lengths)]
    parts = split(rows, np.array(lengths), most)
    assert sorted(np.concatenate(parts)) == sorted(rows)
    assert len(parts) == -(-len(rows) // most)
    assert max(map(len, parts)) <= most
    of = dict(zip(rows.tolist(), lengths, strict=True))
    loads = [sum(of[row] for row in part.tolist()) for part in parts]
    # A part that is full cannot take more; else no move of one dialogue would help.
    free = [load for load, part in zip(loads, parts, strict=True) if len(part) < most]
    assert not free or max(free) - min(loads) <= max(lengths)


def test_long_dialogues_are_spread() -> None:
    lengths = np.array([60, 60, 60, 60, 4, 4, 4, 4])
    parts = split(np.arange(8), lengths, 2)
    assert [lengths[part].tolist() for part in parts] == [[60, 4]] * 4


def test_no_part_without_need() -> None:
    rows = np.array([5, 2, 9])
    for most in (None, 3, 4):
        (part,) = split(rows, np.array([3, 4, 5]), most)
        assert part is rows


@pytest.mark.parametrize(
    "values",
    [{}, {"class_weights": "balanced", "label_smoothing": 0.1}, {"optimizer": "notebook"}],
    ids=str,
)
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_make_the_update_of_the_whole_batch(
    family: str, values: dict, tmp_path: Path
) -> None:
    """One update of 16 dialogues, in parts of at most 5: 4, 4, 4 and 4."""
    table, folder, ends = random_table(16), encoder_folder(family, tmp_path), []
    for most in ("none", 5, 16):
        torch.manual_seed(0)
        network = build_classifier(folder, 3, dr_rate=0.0)
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        seen = trained_batches(network)
        settings = {"batch_size": 16, "learning_rate": 1e-3, "warmup_ratio": 0.0, **values}
        (row,) = fit(network, table, micro_batch=most, **settings)
        assert sorted(len(rows) for rows, _ in seen) == ([4] * 4 if most == 5 else [16])
        ends.append((weights_of(network), row.loss, row.train_accuracy))
    whole, parts, same = ends
    torch.testing.assert_close(parts[0], whole[0], atol=1e-6, rtol=0)
    assert parts[1:] == (pytest.approx(whole[1], abs=1e-6), whole[2])
    assert torch.equal(same[0], whole[0])


def test_parts_draw_other_masks_each() -> None:
    """Dropout goes on from one part to the next, and a step's draws hang on the seed alone."""
    table, ends = random_table(16), []
    for _ in range(2):
        network = saved.new_network()
        fit(network, table, batch_size=16, micro_batch=4)
        torch.rand(3)
        ends.append(weights_of(network))
    assert torch.equal(*ends)
    network = saved.new_network()
    fit(network, table, batch_size=16)
    assert not torch.equal(weights_of(network), ends[0])


def test_equal_texts_in_two_parts_are_not_dropped_alike() -> None:
    one = random_table(1)
    table = TokenArrays(np.tile(one.ids, 4), one.offsets[1] * np.arange(5), np.tile(one.labels, 4))
    network, found = saved.new_network(), []
    network.register_forward_hook(
        lambda _, __, logits: found.append(logits.detach()) if network.training else None
    )
    fit(network, table, batch_size=4, micro_batch=1)
    assert len(found[:4]) == len({tuple(logits[0].tolist()) for logits in found[:4]}) == 4


class Small(saved.Dropping):
    """A model on a device that holds only so many tokens."""

    most = 40

    def forward(self, batch: Batch) -> torch.Tensor:
        logits = super().forward(batch)
        if self.training and len(batch.ids) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
        return logits


def small(most: int) -> Small:
    torch.manual_seed(3)
    network = Small()
    network.most = most
    return network


def test_out_of_memory_halves_the_parts_for_good(capsys: pytest.CaptureFixture[str]) -> None:
    """As a training that began with the smaller parts."""
    table = random_table(64)
    most = 4 * int(table.lengths.max()) + 1  # eight dialogues of usual lengths have more
    ends = []
    for network, micro in ((small(most), "none"), (saved.new_network(), 4)):
        seen = trained_batches(network)
        fit(network, table, batch_size=16, micro_batch=micro, shuffle=False, num_epochs=2)
        ends.append(weights_of(network))
        assert [len(rows) for rows, _ in seen] == [4] * 32
    assert torch.equal(*ends)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert said == [
        "note: out of memory with 16 dialogues at once; from here on 8 at once, and as many to a "
        "step as before (micro_batch: 8)",
        "note: out of memory with 8 dialogues at once; from here on 4 at once, and as many to a "
        "step as before (micro_batch: 4)",
    ]


def test_out_of_memory_after_some_steps_repeats_only_that_step() -> None:
    """The steps before it were whole ones; what the failed attempt had added up is dropped."""
    table = random_table(32)
    calls: list[int] = []

    class Once(Bag):
        def forward(self, batch: Batch) -> torch.Tensor:
            if self.training:
                calls.append(len(batch.first))
                if len(calls) == 6:  # the second part of the third step
                    raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(batch)

    ends = []
    for kind in (Once, Bag):
        torch.manual_seed(0)
        network = kind()
        fit(network, table, micro_batch=4, learning_rate=1e-3)
        ends.append(weights_of(network))
    assert calls == [4] * 6 + [2] * 8
    torch.testing.assert_close(*ends, atol=1e-6, rtol=0)


def test_recorded_graphs_are_given_up_before_a_batch_is_halved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        """Graphs whose memory leaves none for the step."""

        def __init__(self, *_: object):
            pass

        def clear(self) -> None:
            pass

        def __call__(self, *_: object) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    table, ends = random_table(32), []
    for recorded in (True, False):
        monkeypatch.setattr(micro_batches, "can_record", lambda *_, given=recorded: given)
        monkeypatch.setattr(micro_batches, "Replayed", Full)
        network = saved.new_network()
        fit(network, table, batch_size=16)
        ends.append(weights_of(network))
    assert torch.equal(*ends)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert line == "note: out of memory (CUDA out of memory); training goes on without CUDA graphs"


def test_a_single_dialogue_that_is_too_much() -> None:
    with pytest.raises(InputError, match="with a single dialogue.*; lower max_len or take a small"):
        fit(small(2), random_table(16))


def test_with_several_processes_a_line_says_what_to_set() -> None:
    line = r"process 2 is out of memory with 8 dialogues at once .*; set micro_batch: 4"
    state = State(Bag(), None, None, torch.zeros(()), torch.zeros(()))
    gradients = micro_batches.Gradients.__new__(micro_batches.Gradients)
    gradients.state, gradients.ranks = state, Ranks(rank=1, count=2)
    with pytest.raises(InputError, match=line):
        gradients.halve(8, "CUDA out of memory")
    assert state.micro_batch is None


def test_a_resumed_training_goes_on_with_the_smaller_parts(tmp_path: Path) -> None:
    """Also on a device that would now hold the larger ones."""
    table = saved.TABLE
    most = 2 * int(table.lengths.max()) + 1
    whole = small(most)
    saved.fit(whole)
    with pytest.raises(saved.Killed), saved.Dying(tmp_path, saved.MINE, 7) as checkpoints:
        saved.fit(small(most), checkpoints)
    resumed = saved.new_network()
    again = trained_batches(resumed)
    with Checkpoints(tmp_path, saved.MINE, 5) as checkpoints:
        saved.fit(resumed, checkpoints)
    assert saved.same(whole, resumed)
    assert {len(rows) for rows, _ in again} == {2}


def test_the_record_keeps_the_parts_that_were_used(
    interim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the training was resumed, or was over already, with memory for the whole batch."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(mlflow, "push", lambda *_: None)
    plain, started = EmotionClassifier.forward, []

    def short_of_memory(network: EmotionClassifier, batch: Batch) -> torch.Tensor:
        if network.training and len(batch.first) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(network, batch)

    def dying(network: EmotionClassifier, batch: Batch) -> torch.Tensor:
        started.append(network.training)
        if started[-2:] == [False, True]:  # the first step after the first epoch was scored
            raise saved.Killed
        return short_of_memory(network, batch)

    def recorded(forward: Callable[..., torch.Tensor], **values: object) -> tuple[str, str]:
        """micro_batch as it was set, and as it was used."""
        monkeypatch.setattr(EmotionClassifier, "forward", forward)
        computed = {"device": "cpu", "precision": "fp32", "mask_rate": 0.0, "num_epochs": 2}
        run.train(
            params_of(**{**TINY_PARAMS, **computed, **values}),
            encoder=interim / "encoder",
            dialogues=interim / "dialogues.parquet",
            labels=interim / "labels.json",
            tokens=interim / "tokens",
            classifier=tmp_path / "classifier",
            history=tmp_path / "history.csv",
            record=tmp_path / "run.json",
            lock=tmp_path / "train.lock",
        )
        record = Record.load(tmp_path / "run.json")
        return record.params["micro_batch"], record.tags["micro_batch_used"]

    with pytest.raises(saved.Killed):
        recorded(dying)
    assert recorded(plain) == ("none", "4")
    assert recorded(plain) == ("none", "4")
    assert recorded(plain, seed=1) == ("none", "none")
    assert recorded(plain, micro_batch=2) == ("2", "2")


def test_the_scaler_of_fp16_scales_every_part() -> None:
    """On the CPU, with a scaler of its own: the gradients of both ways are equal."""
    table, found = random_table(16), []
    for most in (None, 4):
        torch.manual_seed(0)
        network = Bag()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
        state = State(
            network,
            torch.optim.SGD(network.parameters(), lr=1.0),
            scaler,
            torch.zeros(()),
            torch.zeros((), dtype=torch.int64),
            micro_batch=most,
        )
        gradients = micro_batches.Gradients(
            state,
            train=table,
            load=partial(make_batch, table),
            seed=lambda: None,
            loss=micro_batches.Loss(3),
            placement=Placement(torch.device("cpu"), "fp32", ""),
            ranks=ALONE,
        )
        sums = gradients(np.arange(16), torch.tensor(1 / 16))
        scaled = network.linear.weight.grad.clone()
        scaler.unscale_(state.optimizer)
        torch.testing.assert_close(network.linear.weight.grad * 2.0**7, scaled)
        found.append((network.linear.weight.grad, sums))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-6)
    batch = make_batch(table, np.arange(16))
    torch.manual_seed(0)
    plain = functional.cross_entropy(Bag()(batch), batch.labels)
    assert found[1][1][0].item() == pytest.approx(plain.item(), abs=1e-6)


def test_graphs_are_for_whole_steps_of_one_process_of_our_own_forward_pass() -> None:
    def recorded(device: str, count: int = 1, most: int | None = None, kind: str = "bert") -> bool:
        config = FAMILIES["bert"].__class__(**FAMILIES["bert"].to_dict())
        network = EmotionClassifier(AutoModel.from_config(config), 3, dr_rate=0.0)
        config.model_type = network.encoder.config.model_type = kind
        state = State(network, None, None, torch.zeros(()), torch.zeros(()), micro_batch=most)
        return can_record(state, Placement(torch.device(device), "fp32", ""), Ranks(0, count))

    assert recorded("cuda")
    assert not recorded("cpu")
    assert not recorded("cuda", count=2)
    assert not recorded("cuda", most=4)
    assert not recorded("cuda", kind="modernbert")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"micro_batch": 33, "batch_size": 32},
            "params: micro_batch 33 is above batch_size, which is 32; lower micro_batch",
        ),
        (
            {"average_last": 4, "num_epochs": 3},
            "params: average_last 4 is above num_epochs, which is 3; lower average_last",
        ),
    ],
)
def test_more_than_there_is_of(values: dict, line: str) -> None:
    """Also where the limit is on the card."""
    with pytest.raises(InputError, match=line):
        params_of(**values)
    card = dict.fromkeys(("learning_rate", "mask_rate"), 0.1)
    card |= {"max_len": 64, "optimizer": "adamw", "batch_size": 32, "num_epochs": 3}
    (key, value), *_ = values.items()
    with pytest.raises(InputError, match=line):
        params_of(**{key: value}).resolved(card)
    assert getattr(params_of(**{key: value - 1}).resolved(card), key) == value - 1
