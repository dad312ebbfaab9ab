"""The optimal acceptance of multi-draft verification: against linear programs, brute force, and published values."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decodery.speculative.draft import Siblings
from decodery.speculative.transport import (
    alpha_by_subsets,
    alpha_kseq,
    alpha_rrs_wor,
    alpha_rrs_wr,
    alpha_star,
    alpha_stars,
    best_coupling,
    rho_star,
    rrs_wor_samples,
    set_law,
)
from decodery.speculative.transport.attained import any_of
from decodery.speculative.transport.optimum import race

WITH, WITHOUT, GREEDY = Siblings.WITH_REPLACEMENT, Siblings.WITHOUT_REPLACEMENT, Siblings.GREEDY
MODES = (WITH, WITHOUT, GREEDY)
FIRST = ((0.5, 0.3, 0.2), (0.2, 0.3, 0.5))
SECOND = ((0.4, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4))


@st.composite
def pairs(draw, largest: int = 6):
    """Target and draft law: random ones, with zeros, ties, certainty, equality, nothing in common."""
    size = draw(st.integers(2, largest))
    masses = st.lists(st.sampled_from([0.0, 0.0, 1e-9, 0.1, 0.1, 0.37, 1.0, 2.0, 7.0]), min_size=size, max_size=size)
    some = masses.filter(lambda row: sum(row) > 0)
    q = draw(some)
    kind = draw(st.sampled_from(["free", "free", "equal", "disjoint", "certain"]))
    if kind == "equal":
        p = list(q)
    elif kind == "disjoint" and min(q) == 0:
        p = [float(mass == 0) for mass in q]
    elif kind == "certain":
        token = draw(st.integers(0, size - 1))
        p = [float(place == token) for place in range(size)]
    else:
        p = draw(some)
    return p, q


def random_pair(seed: int, size: int = 5, concentration: float = 1.0):
    generator = np.random.Generator(np.random.Philox(key=seed))
    return tuple(generator.dirichlet([concentration] * size) for _ in range(2))


class TestOptimum:
    @given(pair=pairs(), n=st.integers(1, 3), mode=st.sampled_from(MODES))
    def test_it_is_the_linear_program_s(self, pair, n, mode):
        assert alpha_star(*pair, n, mode) == pytest.approx(best_coupling(*pair, n, mode).acceptance, abs=1e-9)

    @settings(max_examples=300)
    @given(pair=pairs(), n=st.integers(1, 4), mode=st.sampled_from(MODES))
    def test_it_is_the_minimum_over_all_subsets(self, pair, n, mode):
        assert alpha_star(*pair, n, mode) == pytest.approx(alpha_by_subsets(*pair, n, mode), abs=1e-12)

    @given(pair=pairs(), mode=st.sampled_from(MODES))
    def test_one_draft_is_accepted_with_one_minus_the_distance(self, pair, mode):
        p, q = (np.array(row) / sum(row) for row in pair)
        assert alpha_star(p, q, 1, mode) == pytest.approx(np.minimum(p, q).sum(), abs=1e-12)

    @given(pair=pairs(), mode=st.sampled_from((WITH, WITHOUT)))
    def test_more_drafts_are_never_worse(self, pair, mode):
        values = [alpha_star(*pair, n, mode) for n in (1, 2, 3, 4, 8)]
        assert all(later >= earlier - 1e-12 for earlier, later in pairwise(values))

    @given(pair=pairs(), n=st.integers(1, 6))
    def test_distinct_drafts_are_never_worse(self, pair, n):
        assert alpha_star(*pair, n, WITHOUT) >= alpha_star(*pair, n, WITH) - 1e-12

    @given(pair=pairs())
    def test_the_whole_support_covers_the_target(self, pair):
        p, q = (np.array(row) for row in pair)
        support = int((q > 0).sum())
        covered = float((p / p.sum())[q > 0].sum())
        for n in (support, support + 2):
            assert alpha_star(p, q, n, WITHOUT) == pytest.approx(covered, abs=1e-12)

    @given(pair=pairs(), n=st.integers(1, 3))
    def test_no_verifier_exceeds_it(self, pair, n):
        assert alpha_kseq(*pair, n) <= alpha_star(*pair, n, WITH) + 1e-12
        assert alpha_rrs_wr(*pair, n) <= alpha_star(*pair, n, WITH) + 1e-12
        assert alpha_rrs_wor(*pair, n) <= alpha_star(*pair, n, WITHOUT) + 1e-12

    @given(pair=pairs(), n=st.integers(1, 3))
    def test_the_greedy_set_s_own_verifier_is_its_optimum(self, pair, n):
        """Closed form of the verifier against the general optimum of the set's law."""
        assert alpha_star(*pair, n, GREEDY) == pytest.approx(alpha_by_subsets(*pair, n, GREEDY), abs=1e-12)

    def test_published_values(self):
        table = {
            FIRST: {1: (0.7,) * 6, 2: (0.86, 0.985714, 0.9, 0.76, 0.82, 0.791355),
                    3: (0.988, 1, 1, 0.808, 1, 0.858519)},
            SECOND: {2: (0.79, 0.834524, 0.766667, 0.72, 0.764286, 0.75),
                     3: (0.871, 1, 0.933333, 0.768, 0.840298, 0.79395)},
        }  # fmt: skip
        for (p, q), rows in table.items():
            for n, expected in rows.items():
                found = (
                    *(alpha_star(p, q, n, mode) for mode in MODES),
                    alpha_rrs_wr(p, q, n),
                    alpha_rrs_wor(p, q, n),
                    alpha_kseq(p, q, n),
                )
                assert found == pytest.approx(expected, abs=1e-6)

    def test_synthetic_rows(self):
        """The published means of rows over 1000 tokens with four drafts, within their sampling error."""
        for temperature, spread, (one, wr, wor, kseq, rrs, rrs_wor, greedy) in (
            (1.0, 1, (0.692, 0.971, 0.981, 0.898, 0.861, 0.873, 0.881)),
            (0.6, 2, (0.335, 0.450, 0.591, 0.441, 0.435, 0.559, 0.526)),
        ):
            rows = [_synthetic(seed, 1000, temperature, spread) for seed in range(24)]
            found = np.array(
                [
                    (
                        alpha_star(p, q, 1, WITH),
                        alpha_star(p, q, 4, WITH),
                        alpha_stars(p, q, (4,), WITHOUT, step=0.2)[4],
                        alpha_kseq(p, q, 4),
                        alpha_rrs_wr(p, q, 4),
                        rrs_wor_samples(p, q, 4, 16)[:, -1].mean(),
                        alpha_star(p, q, 4, GREEDY),
                    )
                    for p, q in rows
                ]
            )
            error = found.std(axis=0) * np.sqrt(1 / len(rows) + 1 / 12)
            published = np.array((one, wr, wor, kseq, rrs, rrs_wor, greedy))
            assert (np.abs(found.mean(axis=0) - published) < 4 * error + 1e-3).all()

    def test_the_closed_form_for_two_is_the_quadrature_s(self):
        for seed in range(50):
            p, q = random_pair(seed, 40, 0.3)
            order = np.argsort(p / q)
            inside = race(q[order][None], 2)[1, 0]
            best = 1 + min(0.0, float((np.cumsum(p[order]) - inside).min()))
            assert alpha_star(p, q, 2, WITHOUT) == pytest.approx(best, abs=1e-9)

    def test_a_sort_by_the_wrong_key_is_too_high(self):
        """Negative control: other prefixes than those of q/p miss the minimum."""
        misses = []
        for seed in range(50):
            p, q = random_pair(seed)
            order = np.argsort(-q)
            scanned = 1 + min(0.0, float((np.cumsum(p[order]) - np.cumsum(q[order]) ** 2).min()))
            misses.append(scanned - alpha_star(p, q, 2, WITH))
        assert min(misses) > -1e-12
        assert max(misses) > 0.01

    def test_masses_that_are_far_apart(self):
        """One token with almost all mass, and tails down to 1e-18: no digit may get lost, nothing may be infinite."""
        p = np.array([1e-18, 1e-9, 0.5, 0.5])
        q = np.array([1.0, 1e-12, 1e-15, 1e-18])
        for mode in MODES:
            for n in (1, 2, 3, 4):
                value = alpha_star(p, q, n, mode)
                assert 0 <= value <= 1
                assert value == pytest.approx(alpha_by_subsets(p, q, n, mode), abs=1e-9)

    def test_it_scales_to_real_vocabularies(self):
        """Closed forms on 49152 tokens, the quadrature on 2000; limits are for one slow core."""
        p, q = _synthetic(0, 49152, 1.0, 1)
        start = time.perf_counter()
        alpha_stars(p, q, (1, 2, 3, 4, 8), WITH)
        alpha_stars(p, q, (1, 2), WITHOUT)
        alpha_stars(p, q, (2, 3, 4, 8), GREEDY)
        alpha_kseq(p, q, 4)
        assert time.perf_counter() - start < 2
        start = time.perf_counter()
        alpha_star(*_synthetic(0, 2000, 1.0, 1), 3, WITHOUT)
        assert time.perf_counter() - start < 2

    @pytest.mark.parametrize("bad", [[0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0], [[0.5, 0.5]]])
    def test_what_is_no_law_is_refused(self, bad):
        with pytest.raises(ValueError, match="a law must be"):
            alpha_star(bad, [0.5, 0.5], 2, WITH)
        with pytest.raises(ValueError, match="tokens"):
            alpha_star([1.0], [0.5, 0.5], 2, WITH)
        with pytest.raises(ValueError, match="at least 1"):
            alpha_star([0.5, 0.5], [0.5, 0.5], 0, WITH)


def _synthetic(seed: int, size: int, temperature: float, spread: float):
    """Draft logits N(0, 3^2), target = draft logits + N(0, spread^2), both over the temperature."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    draft = generator.normal(0, 3, size)
    rows = (draft + generator.normal(0, spread, size), draft)
    laws = [np.exp((row - row.max()) / temperature) for row in rows]
    return laws[0] / laws[0].sum(), laws[1] / laws[1].sum()


class TestFactor:
    @pytest.mark.parametrize(
        ("p", "q", "count", "factor", "acceptance"),
        [
            (*FIRST, 2, 1.456776, 0.791355),
            (*FIRST, 3, 1.792593, 0.858519),
            ((1.0, 0.0), (0.5, 0.5), 2, 1.5, 0.75),
            (*SECOND, 2, 1.5, 0.75),
            (*SECOND, 3, 1.939500, 0.793950),
        ],
    )
    def test_published_values(self, p, q, count, factor, acceptance):
        assert rho_star(p, q, count) == pytest.approx(factor, abs=1e-5)
        assert alpha_kseq(p, q, count) == pytest.approx(acceptance, abs=1e-5)

    @settings(max_examples=300)
    @given(pair=pairs(), count=st.integers(1, 5))
    def test_it_is_valid_and_the_smallest(self, pair, count):
        p, q = (np.array(row) / sum(row) for row in pair)
        rho = rho_star(p, q, count)
        assert 1 <= rho <= count

        def excess(factor: float) -> float:
            beta = np.minimum(q, p / factor).sum()
            return any_of(beta, count) - factor * beta

        assert excess(rho) <= 1e-12
        assert rho == 1 or excess(max(1.0, rho - 1e-6)) > -1e-9

    def test_the_guarantee_of_the_paper(self):
        """At least (1 - (1 - 1/k)^k) of the optimum, on 1000 instances; never less than one draft."""
        least = 1.0
        for seed in range(1000):
            p, q = random_pair(seed, 2 + seed % 7, (0.2, 1.0, 3.0)[seed % 3])
            for count in (2, 3):
                accepted = alpha_kseq(p, q, count)
                ratio = accepted / alpha_star(p, q, count, WITH)
                assert ratio >= 1 - (1 - 1 / count) ** count - 1e-12
                assert accepted >= alpha_kseq(p, q, 1) - 1e-12
                assert accepted >= alpha_kseq(p, q, count, rho=count) - 1e-12
                least = min(least, ratio)
        assert least > 0.8


class TestRecursiveRejection:
    def test_samples_agree_with_enumeration(self):
        for seed in range(5):
            p, q = random_pair(seed, 6)
            samples = rrs_wor_samples(p, q, 3, 4000, seed)
            for n in (1, 2, 3):
                column = samples[:, n - 1]
                error = 4 * column.std() / len(column) ** 0.5 + 1e-9
                assert column.mean() == pytest.approx(alpha_rrs_wor(p, q, n), abs=error)

    @given(pair=pairs(), seed=st.integers(0, 5))
    def test_samples_are_probabilities_that_grow(self, pair, seed):
        samples = rrs_wor_samples(*pair, 8, 5, seed)
        assert np.isfinite(samples).all()
        assert (samples >= -1e-12).all()
        assert (samples <= 1 + 1e-12).all()
        assert (np.diff(samples, axis=1) >= -1e-12).all()
        if np.allclose(np.array(pair[0]) / sum(pair[0]), np.array(pair[1]) / sum(pair[1])):
            assert samples[:, 0] == pytest.approx(1)


class TestPlans:
    @given(pair=pairs(5), n=st.integers(1, 3), mode=st.sampled_from(MODES))
    def test_a_plan_is_a_coupling(self, pair, n, mode):
        p = np.array(pair[0]) / sum(pair[0])
        plan = best_coupling(*pair, n, mode)
        taken = sum(plan.accepted.values(), np.zeros(len(p)))
        assert taken + plan.residual == pytest.approx(p, abs=1e-15)
        for drawn, row in plan.accepted.items():
            assert row.sum() <= plan.masses[drawn] * (1 + 1e-12)
            assert set(np.flatnonzero(row).tolist()) <= drawn
        assert sum(plan.masses.values()) == pytest.approx(1)

    def test_the_laws_of_sets(self):
        q = [0.5, 0.3, 0.2]
        assert set_law(q, 2, WITH)[frozenset({0, 1})] == pytest.approx(2 * 0.5 * 0.3)
        assert set_law(q, 2, WITHOUT)[frozenset({0, 1})] == pytest.approx(0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7)
        assert set_law(q, 2, GREEDY) == pytest.approx({frozenset({0, 1}): 0.6, frozenset({0, 2}): 0.4})
        assert set_law(q, 3, WITHOUT) == pytest.approx({frozenset({0, 1, 2}): 1.0})
        assert set_law(q, 2, Siblings.DETERMINISTIC) == {frozenset({0, 1}): 1.0}
