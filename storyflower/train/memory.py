"""The memory of a training: what a step frees is kept for the next, and running out is one line.

In: nothing, or the training itself.
Out: a C library that was told so, or an InputError in the place of torch's.
Not supported: C libraries other than glibc (musl, macOS): they go on as they are.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from storyflower.common.errors import InputError, one_line

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed() -> None:
    """Let glibc keep the memory that a step on a CPU frees, for the steps after it.

    Otherwise it gives some 300 MB back at each step of KoBERT's, and the system hands them out
    again, page by page and zeroed: 75,000 page faults a step. The process stays at its peak, which
    it reaches at each step anyway.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # mallopt(3) allows the latter, newer versions of glibc the former, too. With the trim's alone,
    # every tensor over 128 kB would be given back when it is freed.
    if mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def enough() -> Iterator[None]:
    """A device's memory that runs out elsewhere than in a step's parts becomes an InputError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of memory ({one_line(error)}); lower max_len or take a smaller encoder"
        ) from None
