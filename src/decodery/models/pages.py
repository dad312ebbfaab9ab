"""Memory on huge pages, for what every pass reads from end to end; and freed memory given back to the system.

A pass reads all weights once, from one address to the next. On pages of 4 KiB the processor looks up an address every
64 cache lines, and what fetches lines ahead stops at each page's end; in virtual machines a look-up takes long. Linux
gives pages of 2 MiB to who asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys

import torch
from torch import Tensor

HUGE = 2 << 20
"""Bytes of a huge page."""


def large(size: int) -> Tensor:
    """Zeros, uint8 [size], on huge pages where the system has them; elsewhere on usual ones. Starts at a multiple of 2 MiB.

    The memory is taken from the system when it is first written to, and goes back with the tensor. Raises OSError where
    there is not enough.
    """
    held = mmap.mmap(-1, max(1, size) + HUGE, **_PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            held.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(held, dtype=torch.uint8)
    first = -memory.data_ptr() % HUGE
    return memory[first : first + size]


_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""Shared memory, the default, has no huge pages."""


def give_back() -> None:
    """Give freed memory back to the system. The allocator of most Linux systems (glibc's) otherwise keeps what was freed in
    pieces of less than 32 MiB, such as the weights of a layer, for later; other allocators are left to themselves."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
