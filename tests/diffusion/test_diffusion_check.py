"""`decodery check` and `decodery bench` on masked-diffusion models: honest methods pass, planted faults are caught."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from decodery.diffusion.base import Claim
from decodery.diffusion.completion import Completion
from decodery.diffusion.masked_diffusion import MaskedDiffusionDecoding
from decodery.diffusion.unmasking.base import Commit
from decodery.diffusion.unmasking.llada import Quota
from decodery.engine.method import Exactness
from decodery.errors import Refused
from decodery.evaluation import diffusion_check
from decodery.evaluation.benchmark import run_benchmark
from decodery.evaluation.check import check_method
from decodery.evaluation.questions import Question
from decodery.sampling.structured.automata import TokenAutomaton
from decodery.sampling.structured.expressions import Expression
from decodery.testing import toy_diffusion_model, toy_language_model


@pytest.fixture(autouse=True)
def _small_oracles(monkeypatch):
    """Laws of canvases that have some fifty outcomes with the orders of filling them, and not hundreds."""
    monkeypatch.setattr(diffusion_check, "ORACLES", ((3, 2, 0), (2, 3, 1)))


@pytest.mark.parametrize("spec", ["masked-diffusion", "masked-diffusion(cache=dual, block_length=4)"])
def test_the_base_decoders_keep_what_they_claim(spec):
    report = check_method(toy_diffusion_model(), spec, prompts=4)
    assert report.passed
    claims = [part for part in report.parts if part.name.startswith("claim")]
    assert len(claims) == 3
    assert all(part.passed for part in claims)
    assert report.parts[-1].passed is None, "no law is promised of it as it stands"
    assert report.parts[-2].name == "constraint by enumeration"
    assert report.parts[-2].passed
    assert report.parts[-2].numbers["texts"] > 1


@dataclass(frozen=True)
class Overclaiming(MaskedDiffusionDecoding):
    """Says of low-confidence remasking that it samples exactly, and of two tokens per step that they are one."""

    name = "fault-overclaiming"
    exactness = Exactness.IDENTICAL_TO_SAMPLING

    def claims(self):
        base = MaskedDiffusionDecoding()
        return (Claim("two are one", replace(base, steps=6), base),)


@dataclass(frozen=True)
class HoldsToNothing(MaskedDiffusionDecoding):
    """Takes any text for one of the constraint."""

    name = "fault-holds-to-nothing"

    def completion(self, request):
        said = [b"a"] * request.host.network.vocabulary
        anything = TokenAutomaton.of(Expression("a*"), said)
        return None if super().completion(request) is None else Completion(anything, 3, 0, ends=(), pads=(), banned=())


def test_a_method_that_leaves_the_language_is_caught():
    held = diffusion_check._held(HoldsToNothing())
    assert held.passed is False
    assert held.numbers["outside"] > 0.1


class _NextTokensToo(Quota):
    def choose(self, laws, step):
        commit = super().choose(laws, step)
        return Commit(commit.offsets * 2, commit.tokens * 2)


@dataclass(frozen=True)
class FillsTwice(MaskedDiffusionDecoding):
    name = "fault-fills-twice"

    def unmasking(self, request):
        return _NextTokensToo()


class _Company(Quota):
    request = None

    def choose(self, laws, step):
        places = [min(len(laws) - 1, int(self.request.company > 1))]
        return Commit.at(laws, places, laws.draw(places))


@dataclass(frozen=True)
class LooksAtItsCompany(MaskedDiffusionDecoding):
    name = "fault-looks-at-its-company"

    def unmasking(self, request):
        rule = _Company()
        object.__setattr__(rule, "request", request)
        return rule


def test_planted_faults_are_caught():
    lm = toy_diffusion_model()
    report = check_method(lm, Overclaiming(), prompts=3)
    assert [part.passed for part in report.parts] == [True, True, False, True, False]
    for fault, word in ((FillsTwice(), "not masked"), (LooksAtItsCompany(), "alone")):
        report = check_method(lm, fault, prompts=3)
        assert not report.passed
        assert any(word in part.detail for part in report.parts if part.passed is False)


def test_a_wrong_pairing_is_refused():
    with pytest.raises(Refused, match="causal"):
        check_method(toy_language_model(), "masked-diffusion")
    with pytest.raises(Refused, match="masked-diffusion model"):
        check_method(toy_diffusion_model(), "autoregressive", prompts=2)


def test_benchmark_measures_against_one_token_per_step():
    lm = toy_diffusion_model()
    questions = [Question(str(i), "letters", (text,)) for i, text in enumerate(("abcd", "hello"))]
    report = run_benchmark(lm, ["masked-diffusion(rule=threshold, threshold=0.5)"], questions, max_new_tokens=12)
    names = {row.method for row in report.rows}
    assert names == {"masked-diffusion", "bare forward", "masked-diffusion(rule=threshold, threshold=0.5)"}
    assert report.row("masked-diffusion").identical == 1.0
    assert report.row("masked-diffusion").acceptance_length == pytest.approx(1.0)
    assert report.row("masked-diffusion(rule=threshold, threshold=0.5)").acceptance_length > 1.0
    assert "masked-diffusion" in report.markdown()
