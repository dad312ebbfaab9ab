"""Work between passes: in turn, within its share, and without harm to requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from decodery.engine.background import SHARE, Background, Kept
from decodery.engine.scheduler import Scheduler


class Clock:
    """Time that passes when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def steps(clock: Clock, log: list[str], name: str, count: int, seconds: float = 1.0) -> Iterator[None]:
    for _ in range(count):
        clock.now += seconds
        log.append(name)
        yield


def test_work_takes_turns_until_time_is_over() -> None:
    clock, log = Clock(), []
    background = Background(clock)
    background.add("a", steps(clock, log, "a", 3))
    background.add("b", steps(clock, log, "b", 2))
    background.add("a", steps(clock, log, "never", 9))  # one of this key waits already
    assert background.run(3.5) == 4
    assert log == ["a", "b", "a", "b"]
    background.run(100)
    assert log == ["a", "b", "a", "b", "a"]
    assert len(background) == 0


def test_requests_leave_a_share() -> None:
    """A step that takes longer than the share of one pass is paid back by the passes after it."""
    clock, log = Clock(), []
    background = Background(clock)
    background.passed(100.0)  # before there was work: nothing is owed
    background.add("train", steps(clock, log, "step", 100))
    for _ in range(200):
        background.passed(1.0)
    assert len(log) == pytest.approx(200 * SHARE, abs=1)


def test_a_failure_is_told_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Iterator[None]:
        raise ValueError("no data")
        yield

    clock, log = Clock(), []
    scheduler = Scheduler(background=Background(clock))
    assert scheduler.background is not None
    scheduler.background.add("broken", broken())
    scheduler.background.add("sound", steps(clock, log, "sound", 2))
    scheduler.idle(10)
    assert log == ["sound", "sound"]
    assert str(scheduler.background.failed["broken"]) == "no data"
    assert "no data" in caplog.text


def test_versions_count() -> None:
    kept = Kept("first")
    kept.replace("second")
    assert (kept.value, kept.version) == ("second", 1)
