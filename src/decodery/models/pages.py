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
import threading

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


class Early:
    """Memory as `large` gives it, taken from the system while its owner does something else: on machines that are slow to give
    memory, a gigabyte takes seconds.

    size: bytes that can be had. first: so many of them are written to by a thread of its own, from the start on. Raises OSError
    where there is not enough.
    """

    def __init__(self, size: int, first: int):
        self._memory, self._wanted = large(size), True
        self._thread = threading.Thread(target=self._write, args=(min(first, size),), daemon=True)
        self._thread.start()

    def _write(self, first: int) -> None:
        for start in range(0, first, 4 * HUGE):
            if not self._wanted:
                return
            self._memory[start : min(start + 4 * HUGE, first) : mmap.PAGESIZE] = 0

    def take(self, size: int) -> Tensor:
        """The memory, which nobody else writes to from now on; other memory where it is too small."""
        self._wanted = False
        self._thread.join()
        memory, self._memory = self._memory, torch.empty(0, dtype=torch.uint8)
        return memory if len(memory) >= size else large(size)


_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""Shared memory, the default, has no huge pages."""


def give_back() -> None:
    """Give freed memory back to the system. The allocator of most Linux systems (glibc's) otherwise keeps what was freed in
    pieces of less than 32 MiB, such as the weights of a layer, for later; other allocators are left to themselves."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
