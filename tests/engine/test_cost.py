"""The cost curve: linear between its points, never falling, measured once and then read from its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decodery.engine import cost
from decodery.engine.cost import CostCurve, calibrated, measure
from decodery.models.forward import Forward, Scores
from decodery.testing import ScriptedScorer

IDENTITY = {"model": "scripted", "dtype": "none"}


class Clock:
    """Stands in for the time; a forward of n rows takes `price(n)`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 0.0
        monkeypatch.setattr(cost.time, "perf_counter", lambda: self.now)


class Priced(ScriptedScorer):
    """A scorer whose forwards cost time by their rows; every measurement is different."""

    def __init__(self, clock: Clock, prices: dict[int, float] | None = None, context: int = 4096):
        super().__init__(lambda prefix: torch.zeros(50), 50, context=context)
        self.clock, self.prices, self.asked = clock, prices or {}, 0
        self.sizes: set[int] = set()

    def run_pass(self, forwards: Sequence[Forward]) -> list[Scores]:
        answers = super().run_pass(forwards)
        count = forwards[0].count
        self.asked += 1
        self.sizes.add(count)
        self.clock.now += self.prices.get(count, 1e-3 * (1 + count / 8)) * (1 + 0.5 / self.asked)
        return answers


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


CURVE = CostCurve((1, 4, 8), (2.0, 3.0, 7.0))


@pytest.mark.parametrize(
    ("rows", "seconds"), [(1, 2.0), (4, 3.0), (8, 7.0), (2.5, 2.5), (6, 5.0), (10, 9.0), (0.4, 1.8), (100, 99.0)]
)
def test_between_and_beyond_the_points_it_is_linear(rows: float, seconds: float) -> None:
    assert CURVE(rows) == pytest.approx(seconds)


def test_it_never_reaches_zero() -> None:
    steep = CostCurve((2, 3), (1.0, 10.0))
    assert steep(1) == pytest.approx(1e-3)
    assert steep(-5) == pytest.approx(1e-3)


def test_a_flat_curve_costs_the_same_everywhere() -> None:
    assert {CostCurve.flat(0.5)(rows) for rows in (0.1, 1, 7, 1000)} == {0.5}


@given(st.dictionaries(st.integers(1, 100), st.floats(1e-6, 10), min_size=2), st.floats(0, 200), st.floats(0, 200))
def test_more_rows_never_cost_less(points: dict[int, float], one: float, other: float) -> None:
    curve = CostCurve(tuple(sorted(points)), tuple(sorted(points.values())))
    low, high = sorted((one, other))
    assert curve(low) <= curve(high) * (1 + 1e-9)


def test_measuring_takes_the_fastest_of_several_and_never_falls(clock: Clock) -> None:
    network = Priced(clock, {8: 0.5e-3, 12: 5e-3, 16: 4e-3})
    curve = measure(network)
    assert curve.rows == cost.CALIBRATION_ROWS
    assert list(curve.seconds) == sorted(curve.seconds)
    # The last and fastest round is the one closest to the true price.
    assert curve(1) == pytest.approx(1e-3 * (1 + 1 / 8), rel=0.02)
    assert curve(64) == pytest.approx(9e-3, rel=0.02)
    assert curve.seconds[curve.rows.index(8)] == curve.seconds[curve.rows.index(6)]
    assert curve.seconds[curve.rows.index(16)] == curve.seconds[curve.rows.index(12)]


def test_a_small_context_is_not_overrun(clock: Clock) -> None:
    network = Priced(clock, context=40)
    curve = measure(network)
    assert max(curve.rows) == 20
    assert max(network.sizes) <= 20


def test_it_is_measured_once_and_then_read(clock: Clock, tmp_path: Path) -> None:
    first = Priced(clock)
    curve = calibrated(first, IDENTITY, tmp_path / "calibration")
    files = list((tmp_path / "calibration").iterdir())
    assert [path.suffix for path in files] == [".json"]
    again = Priced(clock)
    assert calibrated(again, IDENTITY, tmp_path / "calibration") == curve
    assert again.asked == 0


def test_another_model_or_setting_is_measured_anew(clock: Clock, tmp_path: Path) -> None:
    calibrated(Priced(clock), IDENTITY, tmp_path)
    other = Priced(clock)
    calibrated(other, {**IDENTITY, "dtype": "bfloat16"}, tmp_path)
    assert other.asked > 0
    threads = Priced(clock)
    calibrated(threads, {**IDENTITY, "threads": "77"}, tmp_path)
    assert threads.asked > 0
    assert len(list(tmp_path.iterdir())) == 3


BROKEN: list[Any] = [
    "",
    "{",
    "[]",
    "null",
    "7",
    {},
    {"rows": [1, 2]},
    {"rows": 1, "seconds": 2},
    {"rows": [], "seconds": []},
    {"rows": [1, 2], "seconds": [0.1]},
    {"rows": [2, 1], "seconds": [0.1, 0.2]},
    {"rows": [1, 1], "seconds": [0.1, 0.2]},
    {"rows": [1, 2], "seconds": ["fast", None]},
    {"rows": [1, 2], "seconds": [0.1, -0.2]},
    {"rows": [1, 2], "seconds": [0.1, float("nan")]},
]


@pytest.mark.parametrize("content", BROKEN, ids=str)
def test_a_broken_file_is_measured_anew_and_replaced(content: Any, clock: Clock, tmp_path: Path) -> None:
    curve = calibrated(Priced(clock), IDENTITY, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    network = Priced(clock)
    found = calibrated(network, IDENTITY, tmp_path)
    assert network.asked > 0
    assert found.rows == curve.rows
    assert CostCurve.read(path) == found


def test_a_home_that_cannot_be_written_costs_only_a_measurement(clock: Clock, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert calibrated(Priced(clock), IDENTITY, blocked / "calibration").rows == cost.CALIBRATION_ROWS
    assert blocked.read_text() == "not a folder"
