"""Memory that a step frees stays for the next step; running out is one line."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from storyflower.common.errors import InputError
from storyflower.train import memory

FAULTS = """
import resource, torch
from storyflower.train.memory import keep_freed
{before}
def step():
    for _ in range(2):  # as a step: several tensors at once, all of them freed at its end
        tensors = [torch.ones(3_000_000) for _ in range(20)]
step()
start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told so")
def test_a_second_step_gets_the_pages_of_the_first() -> None:
    faults = {}
    for before in ("", "keep_freed()"):
        command = [sys.executable, "-c", FAULTS.format(before=before)]
        faults[before] = int(subprocess.run(command, check=True, capture_output=True).stdout)
    assert faults["keep_freed()"] < faults[""] / 3, faults


@pytest.mark.parametrize("most", [2**31, 2**25, 0])  # an older glibc takes no more than 32 MiB
def test_a_threshold_that_is_refused_leaves_none_behind(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {}

    def mallopt(what: int, value: int) -> int:
        if what == memory.M_MMAP_THRESHOLD and value > most:
            return 0
        taken[what] = value
        return 1

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    memory.keep_freed()
    expected = {memory.M_MMAP_THRESHOLD: min(most, 2**30), memory.M_TRIM_THRESHOLD: 2**31 - 1}
    assert taken == (expected if most else {})


def test_memory_that_runs_out_anywhere_is_one_line() -> None:
    line = r"^out of memory \(CUDA out of memory. Tried 2 GiB\); lower max_len or take a smaller "
    with pytest.raises(InputError, match=line), memory.enough():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried 2 GiB")
