"""The laws of the verifiers of several drafts, by enumeration, and the mistakes that must break them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decodery.sampling.noise import Noise
from decodery.speculative.draft import ROOT, Draft, Siblings, chain
from decodery.speculative.transport import alpha_star, plans, rho_star
from decodery.speculative.verifiers import (
    GreedySetMatch,
    KSeq,
    TransportPlan,
    TreeRejection,
    optimal_multi_draft,
    spectr,
    verifier_for,
)
from decodery.speculative.verifiers.spectr import kseq_residual
from decodery.testing import VerifierLaws, multi_draft_faults
from decodery.testing.verifier_laws import VerifierCase, verifier_cases

WITH, WITHOUT, GREEDY = Siblings.WITH_REPLACEMENT, Siblings.WITHOUT_REPLACEMENT, Siblings.GREEDY


@pytest.fixture(autouse=True)
def _each_law_once(monkeypatch):
    """Enumeration asks for the same few plans and factors thousands of times."""

    @cache
    def plan(p, q, n, mode):
        return plans.best_coupling(np.frombuffer(p), np.frombuffer(q), n, mode)

    @cache
    def factor(p, q, count):
        return rho_star(np.frombuffer(p), np.frombuffer(q), count)

    monkeypatch.setattr(
        optimal_multi_draft, "best_coupling", lambda p, q, n, mode: plan(p.tobytes(), q.tobytes(), n, mode)
    )
    monkeypatch.setattr(spectr, "rho_star", lambda p, q, count: factor(p.numpy().tobytes(), q.numpy().tobytes(), count))


class TestKSeq(VerifierLaws):
    verifier = KSeq()
    siblings = (WITH,)


class TestKSeqDividedByTheNumberOfDrafts(VerifierLaws):
    verifier = KSeq(best_factor=False)
    siblings = (WITH,)


class TestGreedySet(VerifierLaws):
    verifier = GreedySetMatch()
    siblings = (GREEDY,)
    reaches_optimum = True


class TestTransportPlan(VerifierLaws):
    verifier = TransportPlan()
    siblings = (WITH, WITHOUT, GREEDY)
    reaches_optimum = True


def _laws(verifier, *siblings):
    return type("Laws", (VerifierLaws,), {"verifier": verifier, "siblings": siblings})()


@pytest.mark.parametrize(
    "wrong", [multi_draft_faults._UnitFactor(), multi_draft_faults._PlainResidual()], ids=lambda v: type(v).__name__
)
def test_a_wrong_k_seq_breaks_the_law(wrong):
    laws = _laws(wrong, WITH)
    laws.test_chains_have_the_target_law()  # it is right as long as there is one draft
    with pytest.raises(AssertionError, match="off the target's law"):
        laws.test_trees_have_the_target_law()


def test_judging_the_greedy_set_as_samples_breaks_the_law():
    laws = _laws(multi_draft_faults._GreedyAsSamples(), GREEDY)
    laws.test_chains_have_the_target_law()
    with pytest.raises(AssertionError, match="off the target's law"):
        laws.test_trees_have_the_target_law()


def test_k_seq_on_distinct_drafts_breaks_the_law():
    """Drafts must be independent; the verifier itself refuses others, so its refusal is taken out first."""
    laws = _laws(multi_draft_faults._UncheckedKSeq(), WITHOUT)
    with pytest.raises(AssertionError, match="off the target's law"):
        laws.test_trees_have_the_target_law()


@pytest.mark.parametrize("count", [2, 3])
def test_the_residual_turns_negative_just_below_the_best_factor(count):
    below = []
    for seed in range(200):
        generator = np.random.Generator(np.random.Philox(key=seed))
        p, q = (torch.from_numpy(generator.dirichlet([0.7] * 5)) for _ in range(2))
        factor = KSeq().factor(p, q, count)
        assert float(kseq_residual(p, q, factor, count).min()) >= -1e-12
        if factor > 1:
            below.append(float(kseq_residual(p, q, max(0.98 * factor, 1e-9), count).min()))
    assert min(below) < -1e-4


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        ((0.5, 0.3, 0.2), (0.2, 0.3, 0.5), {WITHOUT: (0.82, 1.0), WITH: (0.76, 0.808)}),
        ((0.4, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4), {WITHOUT: (0.764286, 0.840298), WITH: (0.72, 0.768)}),
        ((1.0, 0.0), (0.5, 0.5), {WITHOUT: (1.0, 1.0), WITH: (0.75, 0.875)}),
    ],
)
def test_published_acceptances(p, q, expected):
    case = _case(p, q)
    for kind, values in expected.items():
        for count, value in zip((2, 3), values, strict=True):
            assert _laws(TreeRejection(), kind).acceptance(case, kind, count) == pytest.approx(value, abs=1e-6)
    kseq = {(0.5, 0.3, 0.2): (0.791355, 0.858519), (0.4, 0.3, 0.2, 0.1): (0.75, 0.793950), (1.0, 0.0): (0.75, 0.875)}
    for count, value in zip((2, 3), kseq[p], strict=True):
        assert _laws(KSeq(), WITH).acceptance(case, WITH, count) == pytest.approx(value, abs=1e-5)
    for count in (1, 2, 3):
        best = alpha_star(p, q, count, GREEDY)
        assert _laws(GreedySetMatch(), GREEDY).acceptance(case, GREEDY, count) == pytest.approx(best, abs=1e-12)


def test_distinct_drafts_of_the_whole_support_cover_the_target():
    for case in verifier_cases():
        p, q = case.target(()), case.drafter(())
        if bool((p[q == 0] > 0).any()):
            continue
        if case.vocabulary > 4:
            continue
        for verifier in (TreeRejection(), TransportPlan()):
            accepted = _laws(verifier, WITHOUT).acceptance(case, WITHOUT, int((q > 0).sum()))
            assert accepted == pytest.approx(1.0, abs=1e-9), case.name


def test_following_only_the_tested_draft_is_exact_but_accepts_less():
    """What sharing nodes is for: all drafts that agree with an accepted token stay alive, not only the one that was tested."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.3, 0.3])
    lengths = {}
    for merged in (True, False):
        total = 0
        for sample in range(1500):
            noise = Noise(5, sample)
            total += len(KSeq().verify(_drawn(q, 4, 3, noise, merged), _Rows(p), noise, 0).path)
        lengths[merged] = total / 1500
    assert lengths[True] > lengths[False] + 0.1  # standard error 0.03


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize(
    ("verifier", "kind", "optimal"),
    [
        (KSeq(), WITH, False),
        (TreeRejection(), WITH, False),
        (TreeRejection(), WITHOUT, False),
        (GreedySetMatch(), GREEDY, True),
        (TransportPlan(), WITH, True),
        (TransportPlan(), WITHOUT, True),
    ],
    ids=lambda value: getattr(value, "value", type(value).__name__),
)
def test_any_laws(data, verifier, kind, optimal):
    """Zeros, ties, certainty, equality, nothing in common, masses of 1e-9: the law is the target's, acceptance below the
    optimum or at it."""
    size, count = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 3))
    masses = st.lists(st.sampled_from([0.0, 1e-9, 0.1, 0.1, 0.37, 2.0]), min_size=size, max_size=size)
    q = data.draw(masses.filter(any))
    p = q if data.draw(st.booleans()) and data.draw(st.booleans()) else data.draw(masses.filter(any))
    case = _case([mass / sum(p) for mass in p], [mass / sum(q) for mass in q])
    laws = _laws(verifier, kind)
    laws._assert_law(case, kind, (count,))
    accepted, best = laws.acceptance(case, kind, count), alpha_star(p, q, count, kind)
    assert accepted <= best + 1e-9
    assert not optimal or accepted >= best - 1e-9


def _case(p, q) -> VerifierCase:
    target, drafter = torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)
    return VerifierCase("given", len(p), lambda prefix: target, lambda prefix: drafter)


class _Rows:
    """The same law after every node."""

    def __init__(self, law: torch.Tensor):
        self._row = law.log()

    def __getitem__(self, row: int) -> torch.Tensor:
        return self._row


def _drawn(q: torch.Tensor, drafts: int, length: int, noise: Noise, merged: bool) -> Draft:
    """`drafts` independent sequences from q; equal prefixes share nodes or do not."""
    from decodery.sampling.noise import Stage

    tokens, parents, ends, draws = [], [], [ROOT] * drafts, {}
    for depth in range(length):
        places: dict[tuple[int, int], int] = {}
        for number in range(drafts):
            token = noise.choose(q, depth, Stage.DRAFT, number)
            key = (ends[number], token)
            if not merged or key not in places:
                places[key] = len(tokens)
                tokens.append(token)
                parents.append(ends[number])
            draws.setdefault(ends[number], []).append(places[key])
            ends[number] = places[key]
    return Draft(tokens, parents, dict.fromkeys([ROOT, *range(len(tokens))], q), WITH, draws=draws)


def test_wrong_drafts_are_refused():
    rows = torch.zeros(2, 4)
    law = torch.full((4,), 0.25)
    without = Draft([1], [ROOT], {ROOT: law}, WITHOUT)
    for verifier, draft, reason in (
        (KSeq(), without, "independent"),
        (KSeq(), chain([1]), "independent"),
        (GreedySetMatch(), without, "greedy set"),
        (TransportPlan(), chain([1]), "draft probabilities"),
        (TreeRejection(), Draft([1], [ROOT], {ROOT: law}, GREEDY), "were drawn"),
    ):
        with pytest.raises(ValueError, match=reason):
            verifier.verify(draft, rows, Noise(0), 0)


def test_the_greedy_set_finds_its_verifier():
    draft = Draft([1, 2], [ROOT, ROOT], {ROOT: torch.full((4,), 0.25)}, GREEDY)
    assert isinstance(verifier_for(draft, greedy=False), GreedySetMatch)
