"""What one GPU does with batches of few shapes, shown without one: the filling, the rectangle with
empty texts, and the recording, by a stand-in that replays on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import AutoModel

from storyflower.interim.tokens import TokenArrays
from storyflower.model.attention import in_rectangle
from storyflower.model.batch import Batch, make_batch
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.device import choose
from storyflower.model.processes import ALONE
from storyflower.train import cuda_graphs
from storyflower.train.loss import Loss
from storyflower.train.micro_batches import make_backward
from tests.train.test_fit import FAMILIES, random_table

PLACE = choose("cpu", "fp32")
# What to patch so that the CPU computes as a GPU does
RECTANGLE = ("storyflower.model.forward.make_attention", lambda *given: in_rectangle(*given[:2]))


def classifier(family: str = "bert") -> EmotionClassifier:
    torch.manual_seed(0)
    config = deepcopy(FAMILIES[family])
    for name in config.to_dict():
        if "dropout" in name:
            setattr(config, name, 0.0)
    return EmotionClassifier(AutoModel.from_config(config), 3, dr_rate=0.0)


def shape(batch: Batch) -> list[tuple[int, ...]]:
    return [tuple(values.shape) for values in batch.tensors]


def test_batches_have_few_shapes() -> None:
    table = random_table(640)
    batches = [
        make_batch(table, np.arange(start, start + 64), "cpu", 256) for start in range(0, 640, 64)
    ]
    assert {len(batch.ids) for batch in batches} <= {512, 768}
    assert len({str(shape(batch)) for batch in batches}) <= 2
    assert {batch.width for batch in batches} == {64}
    for batch in batches:
        assert batch.lengths.sum() == len(batch.ids)
        assert batch.positions.max() < batch.width


def test_a_filling_longer_than_the_table() -> None:
    """Seven tokens in all: what fills up repeats them, and never reads beyond."""
    table = TokenArrays(np.arange(5, 12, dtype=np.uint16), np.array([0, 3, 7]), np.zeros(2, int))
    batch = make_batch(table, np.array([1, 0]), "cpu", 256)
    assert len(batch.ids) == 256
    assert batch.ids[:7].tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert set(batch.ids.tolist()) <= set(range(5, 12))


def backward_of(network: EmotionClassifier) -> cuda_graphs.Compute:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return make_backward(network, Loss(3), scaler, PLACE, ALONE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["groups", "rectangle"])
def test_the_filling_changes_nothing(
    family: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, network = random_table(20), classifier(family)
    plain = make_batch(table, np.arange(20))
    weight = torch.tensor(1 / 20)
    backward = backward_of(network)
    expected = backward(plain, weight)
    gradients = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    if way == "rectangle":
        monkeypatch.setattr(*RECTANGLE)
    found = backward(make_batch(table, np.arange(20), "cpu", 256), weight)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for ours, theirs in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(ours.grad, theirs, atol=1e-5, rtol=0)


class Tape:
    """torch.cuda.CUDAGraph without CUDA: what was recorded is called again, into its result."""

    recorded = 0

    def __init__(self) -> None:
        Tape.recorded += 1

    def replay(self) -> None:
        batch, weight = self.inputs
        self.result.copy_(self.compute(batch, weight))


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    Tape.recorded = 0

    @contextmanager
    def nothing(*_: object, **__: object) -> Iterator[None]:
        yield

    class Stream:
        def wait_stream(self, other: "Stream") -> None: ...

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    # The one generator there is stands for the card's as well.
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, _: torch.set_rng_state(state))
    monkeypatch.setattr(torch.cuda, "stream", nothing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", nothing)
    record = cuda_graphs.Replayed.record

    def remembering(self: cuda_graphs.Replayed, batch: Batch, weight):
        tape, inputs, result = record(self, batch, weight)
        tape.inputs, tape.result, tape.compute = (batch, weight), result, self.compute
        return tape, inputs, result

    monkeypatch.setattr(cuda_graphs.Replayed, "record", remembering)
    # The groups of equal length differ from batch to batch; the rectangle is all tensors.
    monkeypatch.setattr(*RECTANGLE)


def graphed(network: EmotionClassifier) -> cuda_graphs.Replayed:
    """As a training does on CUDA."""
    return cuda_graphs.Replayed(backward_of(network), network.parameters())


def test_each_shape_is_recorded_once_and_computes_the_batch_at_hand(no_cuda: None) -> None:
    table, network, twin = random_table(64), classifier(), classifier()
    replayed = graphed(network)
    places = [parameter.grad.data_ptr() for parameter in network.parameters()]
    backward = backward_of(twin)
    weight = torch.tensor(1 / 16)
    for start in (0, 16, 32, 48):
        batch = make_batch(table, np.arange(start, start + 16), "cpu", 256)
        replayed.clear(), twin.zero_grad()
        found, expected = replayed(batch, weight), backward(batch, weight)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0)
    assert Tape.recorded == 1
    assert places == [parameter.grad.data_ptr() for parameter in network.parameters()]
    replayed(make_batch(table, np.arange(5), "cpu", 256), weight)
    assert Tape.recorded == 2


def test_recording_draws_no_random_numbers_of_the_training(no_cuda: None) -> None:
    """Dropout on: the batch that is recorded gets the masks that it would get when replayed, as
    after a resume, when another batch is the first of its shape."""
    table, network = random_table(32), classifier()
    network.dropout.p = 0.5
    replayed, weight = graphed(network.train()), torch.tensor(1 / 16)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(replayed(make_batch(table, np.arange(16), "cpu", 256), weight).clone())
    assert Tape.recorded == 1
    assert torch.equal(*results)
    torch.manual_seed(8)
    assert not torch.equal(
        replayed(make_batch(table, np.arange(16), "cpu", 256), weight), results[0]
    )


def test_a_failed_recording_costs_a_line(
    no_cuda: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch.cuda.graph that fails leaves its own stream the current one; ours must come back."""
    ours = torch.cuda.Stream()
    current = [ours]

    @contextmanager
    def stream(other: object) -> Iterator[None]:
        before, current[0] = current[0], other
        try:
            yield
        finally:
            current[0] = before

    @contextmanager
    def graph(*_: object, **__: object) -> Iterator[None]:
        current[0] = torch.cuda.Stream()
        yield
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    table = random_table(16)
    replayed = graphed(classifier())
    for start in (0, 8):
        batch = make_batch(table, np.arange(start, start + 8), "cpu", 256)
        assert replayed(batch, torch.tensor(1 / 8))[0] > 0
        assert current[0] is ours
    said = capsys.readouterr().err
    assert said.count("note: no CUDA graph (operation not permitted when stream") == 1
    assert Tape.recorded == 1
