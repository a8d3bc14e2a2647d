"""Which device and precision are chosen, on machines that this one pretends to be."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

from storyflower.common.errors import InputError
from storyflower.model.device import choose


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make torch report these GPUs, some with bf16, and these abilities of the CPU."""
    current = [0]  # torch's current GPU

    @contextmanager
    def use(device: torch.device) -> Iterator[None]:
        current.append(device.index or 0)
        yield
        current.pop()

    def pretend(
        *, gpus: Sequence[str] = (), native_bf16: Sequence[int] = (), mps: bool = False, **cpu: bool
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: gpus[index])
        # torch says yes for every CUDA GPU unless told not to count emulation.
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True: current[-1] in native_bf16 or including_emulation,
        )
        monkeypatch.setattr(torch.cuda, "device", use)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **cpu})

    return pretend


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"gpus": ["NVIDIA H100"], "native_bf16": [0]}, ("cuda", "bf16")),
        ({"gpus": ["Tesla T4"]}, ("cuda", "fp16")),
        ({"gpus": ["Tesla T4"], "mps": True, "avx512_bf16": True}, ("cuda", "fp16")),
        ({"mps": True, "avx512_bf16": True}, ("mps", "fp32")),
        ({}, ("cpu", "fp32")),
        ({"avx512_bf16": False, "amx_bf16": False}, ("cpu", "fp32")),
        ({"avx512_bf16": True}, ("cpu", "bf16")),
        ({"amx_bf16": True}, ("cpu", "bf16")),
    ],
)
def test_auto(found: dict, expected: tuple[str, str], machine) -> None:
    machine(**found)
    placement = choose("auto", "auto")
    assert (placement.device.type, placement.precision) == expected
    assert choose(expected[0], "auto") == placement  # named, the same


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "fp32"), ("cpu", "bf16"), ("cuda", "fp32"), ("cuda", "bf16"), ("cuda", "fp16")],
)
def test_what_is_named_is_taken(device: str, precision: str, machine) -> None:
    machine(gpus=["Tesla T4"])
    placement = choose(device, precision)
    assert (placement.device.type, placement.precision) == (device, precision)


@pytest.mark.parametrize(
    ("found", "device", "precision", "line"),
    [
        ({}, "cuda", "auto", "device cuda is not here (0 CUDA GPUs); set device: auto"),
        ({"mps": True}, "cuda", "auto", "device cuda is not here (0 CUDA GPUs, Apple GPU)"),
        ({"gpus": ["Tesla T4"]}, "mps", "auto", "device mps is not here (1 CUDA GPUs (Tesla T4))"),
        ({}, "cpu", "fp16", "precision fp16 needs a CUDA GPU, not cpu; set precision: auto"),
        ({}, "auto", "fp16", "precision fp16 needs a CUDA GPU, not cpu"),
        ({"mps": True}, "auto", "fp16", "precision fp16 needs a CUDA GPU, not mps"),
        ({}, "tpu", "fp32", "device must be auto, cpu, cuda, mps, got 'tpu'"),
        ({}, "meta", "fp32", "device must be auto, cpu, cuda, mps, got 'meta'"),
        ({}, "", "fp32", "device must be auto, cpu, cuda, mps, got ''"),
        ({}, "cuda:1", "fp32", "device cuda:1 is not here (0 CUDA GPUs); set device: auto"),
        ({"gpus": ["Tesla T4"]}, "cuda:1", "auto", "device cuda:1 is not here (1 CUDA GPUs (Tesl"),
        ({"mps": True}, "mps:1", "auto", "device mps:1 is not here (0 CUDA GPUs, Apple GPU); set"),
    ],
)
def test_what_is_not_here_is_said_in_one_line(
    found: dict, device: str, precision: str, line: str, machine
) -> None:
    machine(**found)
    with pytest.raises(InputError) as raised:
        choose(device, precision)
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({}, "0 CUDA GPUs; using cpu in fp32"),
        ({"mps": True}, "0 CUDA GPUs, Apple GPU; using mps in fp32"),
        (
            {"gpus": ["NVIDIA A100", "Tesla T4"], "native_bf16": [0]},
            "2 CUDA GPUs (NVIDIA A100, Tesla T4); using cuda in bf16",
        ),
    ],
)
def test_the_line_names_every_gpu(found: dict, text: str, machine) -> None:
    machine(**found)
    assert str(choose("auto", "auto")) == text
    if "cuda" in text:
        assert str(choose("cuda:0", "auto")) == text.replace("cuda", "cuda:0")
        other = text.replace("cuda in bf16", "cuda:1 in fp16")  # that GPU's own precision
        assert str(choose("cuda:1", "auto")) == other


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_matrix_products_are_in_the_chosen_precision(precision: str, kind: torch.dtype) -> None:
    a = torch.ones(2, 2)
    with choose("cpu", precision).autocast():
        assert (a @ a).dtype == kind
        assert a.sum().dtype == torch.float32
