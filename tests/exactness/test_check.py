"""`check_method`: it passes what is sound and refutes what is not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from mechanisms import LOSSLESS, one_of_each

from decodery.engine.autoregressive import Autoregressive
from decodery.engine.method import Exactness
from decodery.engine.registry import method as as_method
from decodery.errors import BadSetting, MethodUnavailable, Refused
from decodery.evaluation import sampled_law
from decodery.evaluation.check import check_method
from decodery.models.forward import Forward, Rows
from decodery.sampling import Noise
from decodery.sampling.chance import Addressed
from decodery.search.best_of_n import BestOfN
from decodery.testing import (
    SmallLanguageModel,
    planted_faults,
    random_draft,
    scripted_language_model,
    story_scorer,
    toy_language_model,
)

QUICK = {"prompts": ["abcabc", "once", "zyx"], "max_new_tokens": 16, "samples": 100}
"""Enumeration decides, and more samples would only take time."""
PENALISED = "repetition penalty 1.5, no stop before 2 tokens"
SHOWING = {"fault-forgets-prefix": PENALISED, "fault-shared-noise": PENALISED}
"""Fault -> a law in which it shows, where that is another than top-p; in all four it shows the more."""
SMALLER = {
    "spectr": "spectr(drafts=2, length=1)",
    "recursive-speculative-decoding": "recursive-speculative-decoding(width=2, length=2)",
    "qmcpy": "qmcpy(replications=2, least=1, samples=4)",
}
"""Methods that draw much, with drafts small enough for the law of three tokens."""
POINTS = ("ariel", SMALLER["qmcpy"])
"""They read texts from points, which are numbers: there is nothing to enumerate."""


@pytest.fixture(autouse=True)
def _fewer_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law of two tokens in place of three for methods that draw much; the planted faults show as well in it."""
    monkeypatch.setattr(sampled_law, "LEAVES", 120)


def _model() -> SmallLanguageModel:
    return scripted_language_model(story_scorer(), drafter=story_scorer(surprise=0.5, name="other"))


EACH = [name for name in LOSSLESS if name in one_of_each()]
OTHERS = [pytest.param(name, marks=pytest.mark.all_pairs) for name in LOSSLESS if name not in EACH]


@pytest.mark.parametrize("method", [*EACH, "token-recycling(nodes=5)", random_draft(5), *OTHERS], ids=str)
def test_an_honest_method_passes(method):
    method = SMALLER.get(method, method)
    report = check_method(_model(), method, **QUICK)
    assert report.passed, [part for part in report.parts if part.passed is False]
    decided = [part for part in report.parts if method not in POINTS or not part.name.startswith("law by enum")]
    assert all(part.passed for part in decided), "every part has a verdict"
    assert as_method(method).exactness.same_law
    assert report.exactness == as_method(method).exactness


@pytest.mark.parametrize("fault", planted_faults(), ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught(fault, monkeypatch):
    law = SHOWING.get(fault.name, "top-p 0.9")
    monkeypatch.setattr(sampled_law, "LAWS", {law: sampled_law.LAWS[law]})
    monkeypatch.setattr(sampled_law, "LEAVES", 300)  # one of them shows in three tokens only
    real_noise = fault.name == "fault-shared-noise"
    report = check_method(_model(), fault, **{**QUICK, "samples": 400 if real_noise else 100})
    assert not report.passed
    refuted = {part.name.split(",")[0] for part in report.parts if part.passed is False}
    expected = {
        "fault-greedy-accepts-all": "greedy identity",
        "fault-accepts-impossible": "no impossible tokens",
        "fault-shared-noise": "law by sampling",
    }
    assert expected.get(fault.name, "law by enumeration") in refuted


@pytest.mark.parametrize("chance", ["arithmetic", "qmcpy", "qmcpy(points=net, replications=2)", "gumbel"])
@pytest.mark.parametrize("method", ["autoregressive", "token-recycling"])
def test_a_source_of_chance_is_checked_with_a_method(method, chance):
    report = check_method(_model(), method, **QUICK | {"samples": 400}, chance=chance)
    assert all(part.passed for part in report.parts)
    spread = [part for part in report.parts if "spread" in part.name]
    assert len(spread) == (chance != "gumbel")
    assert all(part.numbers["variance_ratio"] < 0.5 for part in spread)


def test_a_source_that_does_not_keep_what_it_promises_is_refuted():
    class Independent(Addressed):
        spread = True

    class Lowest(Addressed):
        def chance(self, sample):
            return Noise(0)

    for source, name in ((Independent(), "samples are spread"), (Lowest(), "law by sampling")):
        report = check_method(_model(), "autoregressive", **QUICK | {"samples": 2_000}, chance=source)
        assert {part.name.split(",")[0] for part in report.parts if part.passed is False} == {name}
    with pytest.raises(Refused, match="nothing can be checked with chance keyed, because samples with the same key"):
        check_method(_model(), "autoregressive", **QUICK, chance="keyed")


def test_the_report_is_json():
    report = check_method(_model(), "prompt-lookup(length=3)", **QUICK)
    told = json.loads(json.dumps(report.as_dict()))
    assert told["method"] == "prompt-lookup(length=3)"
    assert told["passed"] is True
    sampled = [part for part in told["parts"] if part["name"].startswith("law by sampling")]
    assert [part["samples"] for part in sampled] == [25] * 4
    assert all(part["significance"] == pytest.approx(0.001 / 4) for part in sampled)
    assert all(0 < part["expected_total_variation"] < 1 for part in sampled)


def test_progress_is_told():
    told: dict[str, tuple[int, int]] = {}
    check_method(
        _model(), "prompt-lookup", **QUICK, on_progress=lambda label, done, total: told.update({label: (done, total)})
    )
    assert told["greedy identity, cold"] == (3, 3)
    assert told["law by enumeration"] == (4, 4)
    assert told["law by sampling, top-p 0.9"] == (25, 25)
    assert all(done == total for done, total in told.values())


def test_on_a_network_with_the_shipped_prompts():
    report = check_method(toy_language_model(seed=1), "token-recycling", prompts=2, max_new_tokens=8, samples=100)
    assert report.passed
    assert report.parts[0].numbers["prompts"] == 2
    assert report.parts[0].numbers["dtype"] == "float32"


def test_other_dtypes_get_no_verdict_on_identity():
    lm = toy_language_model(seed=1, dtype=torch.bfloat16)
    report = check_method(lm, "prompt-lookup", prompts=["abab"], max_new_tokens=12, samples=100)
    assert report.passed
    assert report.parts[0].passed is None
    assert "float32 only" in report.parts[0].detail


@dataclass(frozen=True)
class _SecondBest(Autoregressive):
    """Takes the second-highest score at the seventh token."""

    name: ClassVar[str] = "second-best"

    def decode(self, request):
        sequence = request.new_sequence()
        pending = list(request.tokens)
        while True:
            scores = yield Forward(sequence, pending, logits=Rows.LAST)
            token = request.draw(scores.logits[0])
            if len(request.new_tokens) == 6 and request.law.greedy:
                token = int(scores.logits[0].topk(2).indices[1])
            if request.commit([token], scores.logits):
                return
            pending = [token]


@dataclass(frozen=True)
class _Approximate(_SecondBest):
    """The same, and it says so."""

    name: ClassVar[str] = "approximate"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE


@dataclass(frozen=True)
class _GreedyOnly(Autoregressive):
    """Promises nothing of sampled output, and indeed draws from another law."""

    name: ClassVar[str] = "greedy-only"
    exactness: ClassVar[Exactness] = Exactness.GREEDY_IDENTICAL

    def decode(self, request):
        sequence = request.new_sequence()
        pending = list(request.tokens)
        while True:
            scores = yield Forward(sequence, pending, logits=Rows.LAST)
            token = request.draw(scores.logits[0] * (1 if request.law.greedy else 3))
            if request.commit([token], scores.logits):
                return
            pending = [token]


@dataclass(frozen=True)
class _Picky(Autoregressive):
    name: ClassVar[str] = "picky"
    refuses: ClassVar[dict[str, str]] = {"temperature": "it is for greedy decoding."}


def test_a_difference_is_located():
    report = check_method(_model(), _SecondBest(), **QUICK)
    [cold] = [part for part in report.parts if part.name == "greedy identity, cold"]
    assert cold.passed is False
    first = cold.numbers["differences"][0]
    assert first["token"] == 6
    assert first["top_2_gap"] > 1e-3
    assert "at token 6" in cold.detail


def test_a_tie_up_to_rounding_is_no_difference():
    """Two scores as close as float32 leaves them: either may win."""
    scorer = story_scorer()
    inner = scorer.score

    def tied(prefixes, whole):
        rows = inner(prefixes, whole)
        top = rows.topk(2).indices
        return rows.scatter(1, top[:, 1:], rows.gather(1, top[:, :1]) - 1e-6)

    scorer.score = tied
    report = check_method(scripted_language_model(scorer), _SecondBest(), **QUICK)
    cold = report.parts[0]
    assert cold.passed is True
    assert cold.numbers["identical"] == 0
    assert "tie up to rounding" in cold.detail


def test_methods_that_promise_less_get_numbers_instead_of_verdicts():
    report = check_method(_model(), _Approximate(), **QUICK)
    assert report.passed
    assert {part.passed for part in report.parts} == {None}
    assert report.parts[0].numbers["identical"] == 0
    report = check_method(_model(), _GreedyOnly(), **QUICK)
    assert report.passed
    assert report.parts[0].passed is True
    distances = [part.numbers["total_variation"] for part in report.parts if part.name.startswith("law by enumeration")]
    assert min(distances) > 0.01
    assert all(part.passed is None for part in report.parts if part.name.startswith("law by"))


def test_what_a_method_refuses_is_not_held_against_it():
    report = check_method(_model(), _Picky(), **QUICK)
    assert report.passed
    assert all(part.passed is None for part in report.parts if part.name.startswith("law by"))
    assert any("greedy decoding" in part.detail for part in report.parts)


def test_what_cannot_run_at_all_is_an_error():
    lm = scripted_language_model(story_scorer())
    with pytest.raises(MethodUnavailable):
        check_method(lm, "draft-model(layers=9)", **QUICK)
    with pytest.raises(BadSetting, match="samples"):
        check_method(lm, "autoregressive", samples=3)
    with pytest.raises(BadSetting, match="significance"):
        check_method(lm, "autoregressive", significance=2.0)
    with pytest.raises(BadSetting, match="prompts"):
        check_method(lm, "autoregressive", prompts=0)
    assert issubclass(Refused, Exception)


@pytest.mark.parametrize(
    "method",
    ["best-of-n(samples=4)", "best-of-n(samples=4, by=total, method='token-recycling')", "self-consistency(samples=4)"],
)
def test_methods_that_decide_among_tries_are_checked_by_these(method):
    report = check_method(toy_language_model(4), method, prompts=3, max_new_tokens=16, samples=100)
    assert report.passed
    tries, decision = report.parts
    assert (tries.passed, tries.numbers["tries"], tries.numbers["identical"]) == (True, 12, 12)
    assert (decision.passed, decision.numbers["decided"]) == (True, 3)


def test_a_decision_for_another_text_is_refuted(monkeypatch):
    def worst(self, request, tries):
        return [(one, one.mean, 0.0) for one in sorted(tries, key=lambda one: one.mean)]

    honest, calls = BestOfN.ranked, []

    def sometimes(self, request, tries):
        calls.append(request)
        return (worst if len(calls) % 2 else honest)(self, request, tries)

    monkeypatch.setattr(BestOfN, "ranked", sometimes)  # what gives the text, and not what it is compared with
    report = check_method(toy_language_model(4), "best-of-n(samples=4)", prompts=2, max_new_tokens=16, samples=100)
    assert not report.passed
    assert [part.passed for part in report.parts] == [True, False]


def test_tries_that_are_no_samples_are_refuted(monkeypatch):
    def off(self, request, number):
        return request.attempt(number, self.samples, seed=number)

    monkeypatch.setattr(BestOfN, "attempt", off)
    report = check_method(toy_language_model(4), "best-of-n(samples=4)", prompts=2, max_new_tokens=16, samples=100)
    assert report.parts[0].passed is False
    lm = toy_language_model(4, dtype=torch.bfloat16)
    report = check_method(lm, "best-of-n(samples=4)", prompts=2, max_new_tokens=16, samples=100)
    assert [part.passed for part in report.parts] == [None, None]
