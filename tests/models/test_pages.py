"""Memory on huge pages."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from decodery.models.pages import HUGE, large

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.parametrize("size", [0, 1, 5000, HUGE, 3 * HUGE + 7])
def test_it_is_as_large_as_asked_zero_and_aligned(size: int) -> None:
    memory = large(size)
    assert memory.numel() == size
    assert not memory.any()
    assert size == 0 or memory.data_ptr() % HUGE == 0


def test_what_is_written_stays_while_a_view_lives() -> None:
    memory = large(2 * HUGE)
    view = memory[HUGE:]
    view[:] = 7
    del memory
    gc.collect()
    assert bool((view == 7).all())


@pytest.mark.skipif(
    not ENABLED.exists() or "[never]" in ENABLED.read_text(), reason="the system gives no huge pages on request"
)
def test_the_system_gives_huge_pages() -> None:
    def huge_kilobytes() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("AnonHugePages")).split()[1])

    before = huge_kilobytes()
    memory = large(16 * HUGE)
    memory[:] = 1
    # Memory may be in pieces too small for all of it.
    assert huge_kilobytes() - before >= 8 * HUGE // 1024
