"""Memory on huge pages."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import pytest

from decodery.models.pages import HUGE, Early, large

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


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what is taken is asked of Linux")
def test_memory_is_taken_early_as_far_as_wanted() -> None:
    before = resident()
    early = Early(64 * HUGE, 32 * HUGE)
    end = time.monotonic() + 60
    while early._thread.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    assert 28 * HUGE < resident() - before < 40 * HUGE
    memory = early.take(64 * HUGE)
    assert memory.numel() == 64 * HUGE
    assert memory.data_ptr() % HUGE == 0
    assert not memory.any()


def test_taking_ends_when_the_memory_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    class Endless:
        def __len__(self) -> int:
            return HUGE

        def __setitem__(self, place: slice, value: int) -> None:
            written.append(place.start)
            time.sleep(0.001)

    monkeypatch.setattr("decodery.models.pages.large", lambda size: Endless())
    early = Early(1 << 50, 1 << 50)
    while len(written) < 3:
        time.sleep(0.001)
    early.take(HUGE)
    assert not early._thread.is_alive()
    assert written == [4 * HUGE * i for i in range(len(written))]


def test_what_was_taken_too_small_is_not_used() -> None:
    memory = Early(HUGE, HUGE).take(HUGE + 1)
    assert memory.numel() == HUGE + 1
    assert not memory.any()
