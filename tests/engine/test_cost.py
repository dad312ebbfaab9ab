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
from decodery.engine.cost import ContextCosts, CostCurve, calibrated, measure
from decodery.engine.events import Drafted, Token
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Scores
from decodery.models.native import build
from decodery.speculative.budget import Acceptance, worthwhile
from decodery.speculative.draft import Draft
from decodery.testing import ScriptedScorer, scripted_language_model, toy_language_model

IDENTITY = {"model": "scripted", "dtype": "none"}


class Clock:
    """Stands in for the time; a forward of n rows takes `price(n)`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 0.0
        monkeypatch.setattr(cost.time, "perf_counter", lambda: self.now)


class Priced(ScriptedScorer):
    """A scorer whose forwards cost time by their rows, and by `slope` for each cached token; every measurement is different."""

    def __init__(self, clock: Clock, prices: dict[int, float] | None = None, context: int = 4096, slope: float = 0.0):
        super().__init__(lambda prefix: torch.zeros(50), 50, context=context)
        self.memory = 1
        self.clock, self.prices, self.slope, self.asked = clock, prices or {}, slope, 0
        self.sizes: set[int] = set()

    def run_pass(self, forwards: Sequence[Forward]) -> list[Scores]:
        count, cached = forwards[0].count, forwards[0].sequence.length
        answers = super().run_pass(forwards)
        self.asked += 1
        self.sizes.add(count)
        price = self.prices.get(count, 1e-3 * (1 + count / 8)) + self.slope * count * cached
        self.clock.now += price * (1 + 0.5 / self.asked)
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
    network = Priced(clock, {8: 1.4e-3, 12: 5e-3, 16: 4e-3})
    curve = measure(network)
    assert curve.rows == cost.CALIBRATION_ROWS
    assert list(curve.seconds) == sorted(curve.seconds)
    # The last and fastest round is the one closest to the true price.
    assert curve(1) == pytest.approx(1e-3 * (1 + 1 / 8), rel=0.02)
    assert curve(64) == pytest.approx(9e-3, rel=0.02)
    assert curve.seconds[curve.rows.index(8)] == curve.seconds[curve.rows.index(6)]
    assert curve.seconds[curve.rows.index(16)] == curve.seconds[curve.rows.index(12)]
    assert curve(6) == pytest.approx(1.4e-3, rel=0.02), "noise only adds, so the lesser of both is nearer to the truth"
    assert curve(12) == curve(20) == pytest.approx(3.5e-3, rel=0.02)


EPYC = """processor : 0
vendor_id : AuthenticAMD
cpu family : 26
model : 2
model name : AMD EPYC
stepping : 1
cpu MHz : 2596.1
flags : fpu avx512_bf16
"""


def test_machines_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(text: str) -> dict[str, str]:
        path = tmp_path / "cpuinfo"
        path.write_text(text)
        return cost.machine(path)

    epyc = told(EPYC)
    assert epyc["processor"] == "AuthenticAMD, AMD EPYC, 26, 2, 1"
    assert epyc["features"] == "fpu avx512_bf16"
    assert int(epyc["cores"]) >= 1
    assert told(EPYC.replace("2596.1", "3100.0")) == epyc, "the present clock rate is not the machine"
    assert told(EPYC + EPYC.replace("processor : 0", "processor : 1")) == epyc
    others = [
        EPYC.replace("AMD EPYC", "AMD EPYC 9B14"),
        EPYC.replace("model : 2", "model : 17"),
        EPYC.replace("avx512_bf16", "avx512_bf16 amx_tile"),
        "CPU implementer : 0x41\nCPU part : 0xd40\nFeatures : fp asimd\n",
        "CPU implementer : 0x41\nCPU part : 0xd4f\nFeatures : fp asimd\n",
    ]
    machines = [tuple(told(text).values()) for text in (EPYC, *others)]
    assert len(set(machines)) == len(machines)
    monkeypatch.setenv(build.CHOICE, "avx2")
    assert told(EPYC) != epyc, "what is compiled for older processors costs something else"


def test_where_no_file_tells_the_platform_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost.platform, "processor", lambda: "arm")
    assert cost.machine(tmp_path / "none")["processor"] == "arm"
    monkeypatch.setattr(cost.platform, "processor", lambda: "")
    assert cost.machine(tmp_path / "none")["processor"], "something is always told"


def test_another_machine_measures_anew(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated(Priced(clock), IDENTITY, tmp_path)
    here = cost.machine()
    for change in ({"processor": "another"}, {"features": "amx_tile"}, {"cores": "96"}):
        monkeypatch.setattr(cost, "machine", lambda change=change: {**here, **change})
        network = Priced(clock)
        calibrated(network, IDENTITY, tmp_path)
        assert network.asked > 0
    assert len(list(tmp_path.iterdir())) == 4


def test_a_measured_curve_tells_its_clock(clock: Clock, tmp_path: Path) -> None:
    for _ in ("measured", "read"):
        tells = calibrated(Priced(clock), IDENTITY, tmp_path).clock
        assert tells is not None
        assert tells() == clock.now
    assert CostCurve.flat().clock is None


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
    {"rows": [1, 2], "seconds": [0.1, 0.2]},
    {"rows": [1, 2], "seconds": {}},
    {"rows": [1, 2], "seconds": {"long": [0.1, 0.2]}},
    {"rows": [1, 2], "seconds": {"64": [0.1]}},
    {"rows": [2, 1], "seconds": {"64": [0.1, 0.2]}},
    {"rows": [1, 1], "seconds": {"64": [0.1, 0.2]}},
    {"rows": [1, 2], "seconds": {"64": ["fast", None]}},
    {"rows": [1, 2], "seconds": {"64": [0.1, -0.2]}},
    {"rows": [1, 2], "seconds": {"64": [0.1, float("nan")]}},
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
    assert ContextCosts.read(path) == found


def test_a_home_that_cannot_be_written_costs_only_a_measurement(clock: Clock, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert calibrated(Priced(clock), IDENTITY, blocked / "calibration").rows == cost.CALIBRATION_ROWS
    assert blocked.read_text() == "not a folder"


# By context


TWO = ContextCosts.of({100: CostCurve((1, 4), (1.0, 2.0)), 300: CostCurve((1, 4), (2.0, 6.0))})


@pytest.mark.parametrize(
    ("context", "one", "four"), [(0, 1.0, 2.0), (128, 1.14, 2.56), (192, 1.46, 3.84), (512, 3.06, 10.24)]
)
def test_between_and_beyond_the_contexts_it_is_linear(context: int, one: float, four: float) -> None:
    assert TWO.at(context)(1) == pytest.approx(one)
    assert TWO.at(context)(4) == pytest.approx(four)


def test_nearby_contexts_share_a_curve() -> None:
    assert TWO.at(129) is TWO.at(192)
    assert TWO.at(192) is not TWO.at(193)
    assert TWO.at(150).at(99) is TWO.at(150), "a curve of one context is the same at any"


def test_as_a_curve_it_is_that_of_the_usual_context() -> None:
    assert TWO(4) == 2.0
    assert ContextCosts.of({500: CURVE})(4) == CURVE(4)
    assert ContextCosts.of({500: CURVE}).at(9000)(4) == CURVE(4)


@given(
    st.dictionaries(st.integers(1, 2000), st.lists(st.floats(1e-6, 10), min_size=3, max_size=3), min_size=1),
    st.integers(0, 4000),
    st.integers(0, 4000),
    st.floats(1, 64),
    st.floats(1, 64),
)
def test_more_context_and_more_rows_never_cost_less(
    measured: dict[int, list[float]], one: int, other: int, few: float, many: float
) -> None:
    costs = ContextCosts.of({context: CostCurve((1, 8, 64), tuple(sorted(s))) for context, s in measured.items()})
    (near, far), (few, many) = sorted((one, other)), sorted((few, many))
    assert costs.at(near)(few) <= costs.at(far)(few) * (1 + 1e-6)
    assert costs.at(far)(few) <= costs.at(far)(many) * (1 + 1e-6)


def test_each_context_is_measured(clock: Clock) -> None:
    costs = measure(Priced(clock, slope=1e-6))
    assert costs.contexts == cost.CALIBRATION_CONTEXTS
    for context in (64, 256, 640, 1024):
        assert costs.at(context)(8) == pytest.approx(2e-3 + 8e-6 * context, rel=0.1)


def test_a_slow_network_is_measured_less_often(clock: Clock) -> None:
    slow, fast = Priced(clock, dict.fromkeys(cost.CALIBRATION_ROWS, 1.0)), Priced(clock)
    measure(slow)
    measure(fast)
    assert 2 * slow.asked < fast.asked


@pytest.mark.parametrize("second", [5e-4, 3e-2, 0.5])
def test_measuring_takes_a_bounded_time(second: float, clock: Clock) -> None:
    """A network of `second` seconds a row: one that is slow is measured by fewer rows, and after the shortest context alone."""
    network = Priced(clock, {rows: second * rows for rows in range(1, 1025)})
    costs = measure(network)
    longest = max((rows for rows in cost.CALIBRATION_ROWS if second * rows <= cost.LONGEST_SECONDS), default=1)
    # What has to be read before anything is known, and the forward after which it stops, are beyond the bound.
    assert clock.now < cost.MOST_SECONDS + 2 * second * (cost.CALIBRATION_CONTEXTS[0] + 4 * longest + 4)
    assert costs.contexts[0] == cost.CALIBRATION_CONTEXTS[0]
    assert (costs.contexts == cost.CALIBRATION_CONTEXTS) == (second == 5e-4)
    assert len(costs.rows) >= 2
    assert costs(64) == pytest.approx(64 * second, rel=0.3)


def test_drafts_shrink_with_the_context() -> None:
    """A row more is cheap after a short text and dear after a long one, so the same draft is cut."""
    costs = ContextCosts.of({64: CostCurve((1, 8), (1.0, 1.1)), 1024: CostCurve((1, 8), (1.0, 12.0))})
    draft = Draft([1, 2, 3], [-1, 0, 1], kinds=["a", "b", "c"])
    assert len(worthwhile(draft, Acceptance(prior=0.6), costs.at(64), 1)) == 3
    assert len(worthwhile(draft, Acceptance(prior=0.6), costs.at(1024), 1)) == 0


@pytest.mark.parametrize(
    "spec", ["prompt-lookup", "suffix-automaton", "approximate-match-lookup", "cascade", "draft-model(length=auto)"]
)
def test_methods_read_the_curve_at_their_context(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that repeats itself, so that every draft is right; after a long one rows are too dear all the same."""
    scorer = ScriptedScorer(
        lambda prefix: 9.0 * torch.nn.functional.one_hot(torch.tensor((prefix[-1] + 1) % 8), 20), 20
    )
    lm = scripted_language_model(scorer)
    near, far = CostCurve((1, 64), (1.0, 1.1)), CostCurve((1, 64), (1.0, 900.0))
    monkeypatch.setattr(lm, "cost", lambda network: ContextCosts.of({64: near, 1024: far}))
    drafted = {}
    for times in (3, 120):
        lm.memory.clear()
        events = lm.generate([*range(8)] * times, spec, max_new_tokens=40).events
        first = next(place for place, event in enumerate(events) if isinstance(event, Token))
        # What is drafted beside the prompt's own rows is no measure.
        drafted[times] = sum(len(event.tokens) for event in events[first:] if isinstance(event, Drafted))
    assert drafted[3] > 10
    assert drafted[120] <= 4, "now and then one, to keep an estimate alive"


def test_another_path_is_measured_anew(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECODERY_HOME", str(tmp_path))
    toy = toy_language_model(layers=1, hidden=8, heads=1)
    lm = LanguageModel(toy.network, toy.tokenizer)
    network: Any = toy.network
    measured: list[str] = []
    monkeypatch.setattr(
        cost, "measure", lambda network: (measured.append(network.path), ContextCosts.of({64: CURVE}))[1]
    )
    first = lm.cost(network)
    assert lm.cost(network) is first
    assert measured == ["eager"]
    monkeypatch.setattr(network, "path", "fused")
    lm.cost(network)
    assert measured == ["eager", "fused"]
    monkeypatch.setattr(network, "threads", 77)
    lm.cost(network)
    assert measured == ["eager", "fused", "fused"]
    again = LanguageModel(toy.network, toy.tokenizer)
    assert again.cost(network) == lm.cost(network), "another process finds them on disk"
    assert len(measured) == 3
    monkeypatch.setattr(cost, "__version__", "0.2.0")
    LanguageModel(toy.network, toy.tokenizer).cost(network)
    assert len(measured) == 4, "another version of the code may cost something else"
