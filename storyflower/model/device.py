"""Choose the device, and a precision that it supports natively.

Nothing is timed: the same machine always gives the same choice.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from storyflower.common.errors import InputError

DEVICES = ("cpu", "cuda", "mps")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """Where the model runs and in which precision."""

    device: torch.device
    precision: str  # fp32, bf16 or fp16
    accelerators: str  # the accelerators of this machine, in words

    def autocast(self) -> AbstractContextManager:
        """Matrix products in the chosen precision; weights and sums stay float32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST[self.precision])

    def synchronize(self) -> None:
        """Wait until the device has finished all work submitted to it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def __str__(self) -> str:
        return f"{self.accelerators}; using {self.device} in {self.precision}"


def choose(device: str, precision: str) -> Placement:
    """Turn a device and a precision ("auto" or a name) into a Placement.

    Raises InputError if there is no such device, or this machine does not have it or the precision.
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    has_mps = torch.backends.mps.is_available()
    accelerators = f"{len(gpus)} CUDA GPUs" + (f" ({', '.join(gpus)})" if gpus else "")
    accelerators += ", Apple GPU" if has_mps else ""
    if device == "auto":
        device = "cuda" if gpus else "mps" if has_mps else "cpu"
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        place = None
    if not place or place.type not in DEVICES:
        raise InputError(f"device must be auto, {', '.join(DEVICES)}, got {device!r}")
    if (place.index or 0) >= {"cuda": len(gpus), "mps": has_mps, "cpu": 1}[place.type]:
        raise InputError(f"device {device} is not here ({accelerators}); set device: auto")
    if precision == "auto":
        precision = native_precision(place)
    if precision == "fp16" and place.type != "cuda":
        raise InputError(f"precision fp16 needs a CUDA GPU, not {device}; set precision: auto")
    return Placement(place, precision, accelerators)


def native_precision(device: torch.device) -> str:
    """bf16 if the hardware multiplies it natively, fp16 on older CUDA GPUs (T4), else fp32."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch asks the current one
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
    return "fp32"
