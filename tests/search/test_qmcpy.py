"""Estimates from low-discrepancy samples: which texts they are, when it stops, and what it tells."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import scipy.stats

from decodery.engine.registry import method as as_method
from decodery.errors import BadParameter, Refused
from decodery.language_model import LanguageModel
from decodery.sampling.chance import LowDiscrepancy, Recording, Replay
from decodery.sampling.estimates import FastKernel
from decodery.testing import MethodLaws, TabularScorer, scripted_language_model, story_scorer

pytest.importorskip("qmcpy")
PROMPT = [0, 1, 2, 3, 0, 1]
SETTINGS: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 8, "seed": 4, "stop_token_ids": [3, 9, 14]}


def model() -> LanguageModel:
    return scripted_language_model(story_scorer(), drafter=story_scorer(surprise=0.5, name="other"))


def told(spec: str, **settings: Any) -> dict[str, Any]:
    reply = model().generate(PROMPT, f"qmcpy({spec})", **(SETTINGS | settings))
    reply = reply[0] if isinstance(reply, list) else reply
    found: dict[str, Any] = reply.stats.details
    return found


class TestLowDiscrepancyEstimate(MethodLaws):
    """All laws but enumeration: a point is a number, and has no branches. Each sample is an estimate of four texts, so there
    are few: three hundred surely notice a law that is 0.2 off, such as that of temperature 0.6 in place of 0.8."""

    samples = 300
    methods = (
        "qmcpy(samples=4, replications=2, least=2)",
        "qmcpy(samples=4, replications=2, least=2, points=net, kernel=True, method=token-recycling)",
    )

    def test_sampled_law_is_that_of_plain_decoding_exactly(self) -> None:
        for method in self.methods:
            with pytest.raises(Refused, match="reads texts from numbers"):
                super().assert_exact(*self.tabular_host(3), method, self.exact_settings[0])


@pytest.mark.parametrize("points", ["lattice", "net", "halton", "kronecker"])
@pytest.mark.parametrize("inner", ["autoregressive", "token-recycling"])
def test_its_texts_are_the_samples_of_the_points(points: str, inner: str) -> None:
    lm, spec = model(), f"qmcpy(points={points}, replications=4, least=2, tolerance=1e9, method={inner})"
    replies = lm.generate(PROMPT, spec, n=8, **SETTINGS)
    seed = as_method(spec).seed(_request(lm, spec))  # type: ignore[attr-defined]
    source = LowDiscrepancy(points=points, replications=4)
    plain = lm.generate(PROMPT, "autoregressive", n=8, chance=source, **(SETTINGS | {"seed": seed}))
    assert [reply.token_ids for reply in replies] == [reply.token_ids for reply in plain]
    assert len({tuple(reply.token_ids) for reply in replies}) > 4
    assert {reply.weight for reply in replies} == {1.0}
    few = lm.generate(PROMPT, spec, n=3, **SETTINGS)
    assert [reply.token_ids for reply in few] == [reply.token_ids for reply in plain[:3]]


def _request(lm: LanguageModel, spec: str) -> Any:
    from decodery.engine.settings import Settings
    from decodery.testing.outputs import new_request

    return new_request(lm, spec, PROMPT, Settings.of(SETTINGS, lm.network.vocabulary))[0]


def test_sets_grow_until_the_interval_is_small_and_no_further() -> None:
    """Twice as many at a time; the first texts stay what they were."""
    spec = "replications=4, least=1, samples=70, tolerance={}"
    whole = told(spec.format(0))
    assert (whole["estimate"]["samples"], len(whole["tries"])) == (64, 64)  # 128 would be more than 70
    sizes = set()
    for tolerance in (1e9, 1.5, 1.0, 0.5):
        found = told(spec.format(tolerance))
        size = found["estimate"]["samples"]
        assert found["tries"] == whole["tries"][:size]
        halves = {n: _interval(whole["tries"][:n], 4) for n in (4, 8, 16, 32, 64)}
        assert size == next((n for n, (_, half) in halves.items() if half <= tolerance), 64)
        sizes.add(size)
    assert len(sizes) > 2


def test_where_all_texts_say_the_same_the_first_sets_are_enough() -> None:
    """An interval of no width at all is as small as a tolerance of 0."""
    found = told("of=tokens, replications=4, least=1, samples=64, tolerance=0", stop_token_ids=[])
    assert (found["estimate"]["value"], found["estimate"]["error"], found["estimate"]["samples"]) == (8.0, 0.0, 4)


def _interval(tries: list[dict[str, Any]], replications: int, confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half width, from the means of every fourth try."""
    means = [
        statistics.fmean(one["log_probability"] for one in tries[own::replications]) for own in range(replications)
    ]
    error = statistics.stdev(means) / math.sqrt(replications)
    return statistics.fmean(means), error * float(scipy.stats.t.ppf((1 + confidence) / 2, replications - 1))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_what_it_tells_of_the_mean(confidence: float) -> None:
    found = told(f"replications=4, samples=32, tolerance=0, confidence={confidence}")
    estimate = found["estimate"]
    value, half = _interval(found["tries"], 4, confidence)
    assert (estimate["of"], estimate["samples"]) == ("log-probability", 32)
    assert estimate["value"] == pytest.approx(value)
    assert (estimate["low"], estimate["high"]) == pytest.approx((value - half, value + half))
    assert "kernel_errors" not in estimate


def test_what_may_be_averaged() -> None:
    tokens, contains = told("of=tokens, samples=16"), told("of=contains, text=c, samples=16")
    mean = statistics.fmean(one["tokens"] for one in tokens["tries"])
    share = statistics.fmean("c" in one["text"] for one in contains["tries"])
    assert tokens["estimate"]["value"] == pytest.approx(mean)
    assert contains["estimate"]["value"] == pytest.approx(share)
    assert 0 < share < 1


@pytest.mark.parametrize("points", ["lattice", "net"])
def test_a_kernel_tells_the_error_of_each_set(points: str) -> None:
    spec = f"qmcpy(points={points}, replications=2, least=8, samples=16, kernel=True)"
    lm = model()
    reply = lm.generate(PROMPT, spec, **SETTINGS)
    details, method = reply.stats.details, as_method(spec)
    values = [[one["log_probability"] for one in details["tries"][own::2]] for own in (0, 1)]
    sets = LowDiscrepancy(points=points, replications=2).sets(method.seed(_request(lm, spec)), PROMPT, 16)  # type: ignore[attr-defined]
    expected = [FastKernel(method.source, own).error(found) for own, found in zip(sets, values, strict=True)]  # type: ignore[attr-defined]
    assert details["estimate"]["kernel_errors"] == pytest.approx(expected)
    assert min(expected) > 0


def test_the_estimate_is_of_the_model_s_expectation() -> None:
    """Fifty requests on a model whose law is known: most intervals cover the truth, and their mean is right."""
    scorer = TabularScorer(5, order=None, seed=5)
    lm = scripted_language_model(scorer)
    from decodery.engine.settings import Settings

    law = scorer.joint([0, 1], 3, Settings(temperature=1.0))
    truth = sum(p * math.log(p) for p in law.values())
    found = [
        lm.generate([0, 1], "qmcpy(replications=4, least=2, samples=16, tolerance=0)", temperature=1.0, seed=seed,
                    max_new_tokens=3).stats.details["estimate"]
        for seed in range(50)
    ]  # fmt: skip
    covered = sum(one["low"] <= truth <= one["high"] for one in found)
    assert 43 <= covered <= 50
    values = [one["value"] for one in found]
    assert abs(statistics.fmean(values) - truth) < 4 * statistics.stdev(values) / math.sqrt(50)


def test_greedy_decoding_is_its_own_expectation() -> None:
    found = told("samples=32", temperature=0.0)
    assert found["estimate"]["samples"] == len(found["tries"]) == 1
    assert found["estimate"]["error"] == 0
    [only] = found["tries"]
    assert (
        found["estimate"]["low"] == found["estimate"]["high"] == found["estimate"]["value"] == only["log_probability"]
    )
    replies = model().generate(PROMPT, "qmcpy", n=2, max_new_tokens=8)
    plain = model().generate(PROMPT, "autoregressive", max_new_tokens=8)
    assert [reply.token_ids for reply in replies] == [plain.token_ids] * 2


def test_a_recorded_estimate_is_replayed() -> None:
    lm, recording = model(), Recording()
    replies = lm.generate(PROMPT, "qmcpy(samples=16)", n=2, chance=recording, **SETTINGS)
    again = lm.generate(
        PROMPT, "qmcpy(samples=16)", chance=Replay(tuple(recording.runs[0])), **(SETTINGS | {"seed": 9})
    )
    assert again.token_ids == replies[0].token_ids


def test_memory_is_set_aside_for_the_largest_round() -> None:
    lm = model()
    passes: list[int] = []
    run_pass = lm.network.run_pass
    lm.network.run_pass = lambda forwards: passes.append(len(forwards)) or run_pass(forwards)  # type: ignore[method-assign,func-returns-value]
    for spec, most in (("samples=64, replications=4", 32), ("samples=8, replications=8, least=1", 8)):
        passes.clear()
        method = as_method(f"qmcpy({spec}, tolerance=0)")
        lm.generate(PROMPT, method, **SETTINGS)
        assert max(passes) == most == len(method.caches(_request(lm, method.spec())))


def test_what_cannot_be_is_refused() -> None:
    for spec, why in (
        ("of=contains", "needs the text that is looked for"),
        ("least=3", "least must be a power of 2, not 3"),
        ("replications=16, least=16", "are 256 texts, which is more than samples=32"),
        ("method=draft-model", "draft-model draws its drafts"),
        ("text=a", "only with of=contains"),
        ("least=1, kernel=True", "2 points of a set or more, and least is 1"),
        ("points=halton, kernel=True", "only with points=lattice or net"),
        ("method=beam-search", "cannot draw the tries"),
        ("points=independent", "must be one of lattice"),
    ):
        with pytest.raises(BadParameter, match=why):
            as_method(f"qmcpy({spec})")
    with pytest.raises(Refused, match="replications times least = 4, and n is 5"):
        model().generate(PROMPT, "qmcpy(replications=4, least=1)", n=5, **SETTINGS)


def test_without_the_package_it_says_so_before_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from decodery.errors import MethodUnavailable

    monkeypatch.setitem(sys.modules, "qmcpy", None)
    for spec in ("qmcpy(points=net)", "qmcpy(kernel=True)"):
        lm = model()
        lm.network.run_pass = lambda forwards: pytest.fail("work has begun")  # type: ignore[method-assign]
        with pytest.raises(MethodUnavailable, match="pip install"):
            lm.generate(PROMPT, spec, **SETTINGS)
    assert model().generate(PROMPT, "qmcpy(samples=16)", **SETTINGS).token_ids
