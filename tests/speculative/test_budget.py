"""How much of a draft is verified."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decodery.engine.cost import CostCurve
from decodery.speculative.budget import MEMORY, Acceptance, best_chain, best_path, within, worthwhile
from decodery.speculative.draft import EMPTY, ROOT, Draft, chain

STEEP = CostCurve((1, 2), (1.0, 2.0))
"""Every row costs as much as the first: drafting cannot pay."""


def _sure(kind: str, hits: int, misses: int) -> Acceptance:
    acceptance = Acceptance()
    for right in [1] * hits + [0] * misses:
        acceptance.observe(chain([7], [kind]), [7 if right else 8])
    return acceptance


class TestAcceptance:
    def test_an_unknown_kind_has_the_prior(self):
        assert Acceptance(prior=0.3).chance("new") == 0.3

    def test_it_counts_a_node_only_where_its_parent_was_right(self):
        acceptance = Acceptance(prior=0.5)
        draft = Draft([1, 2, 3, 4], [ROOT, ROOT, 0, 1], kinds=["a", "b", "c", "d"])
        acceptance.observe(draft, [1, 9])
        assert acceptance.chance("a") > 0.5
        assert acceptance.chance("b") < 0.5
        assert acceptance.chance("c") < 0.5
        assert acceptance.chance("d") == 0.5, "its parent was wrong, so nothing is known of it"

    def test_it_converges_to_the_frequency(self):
        assert _sure("a", 90, 30).chance("a") == pytest.approx(0.75, abs=0.03)

    def test_its_estimate_by_hand(self):
        acceptance = _sure("a", 3, 2)
        assert acceptance.chance("a") == pytest.approx((3 + 0.4 * 4) / (5 + 4))
        half = _sure("a", MEMORY - 1, 0)
        assert half.chance("a") == pytest.approx((MEMORY - 1 + 1.6) / (MEMORY - 1 + 4))
        half.observe(chain([7], ["a"]), [7])
        assert half.chance("a") == pytest.approx((MEMORY / 2 + 1.6) / (MEMORY / 2 + 4)), "halved"

    def test_it_forgets(self):
        acceptance = _sure("a", 10 * MEMORY, 0)
        for _ in range(2 * MEMORY):
            acceptance.observe(chain([7], ["a"]), [8])
        assert acceptance.chance("a") < 0.1

    def test_values_multiply_along_a_path(self):
        acceptance = Acceptance(prior=0.5)
        draft = Draft([1, 2, 3], [ROOT, 0, ROOT], kinds=["a", "a", "a"])
        assert acceptance.values(draft) == [0.5, 0.25, 0.5]

    def test_drafts_without_kinds_teach_nothing(self):
        acceptance = Acceptance()
        acceptance.observe(chain([1]), [1])
        assert acceptance == Acceptance()


class TestWorthwhile:
    def test_all_of_it_where_rows_are_free(self):
        draft = chain(list(range(9)), ["a"] * 9)
        assert worthwhile(draft, Acceptance(), CostCurve.flat(), rows=1) is draft

    def test_nothing_where_each_row_costs_a_forward(self):
        draft = chain(list(range(9)), ["a"] * 9)
        assert len(worthwhile(draft, Acceptance(), STEEP, rows=1)) == 0

    def test_drafts_without_kinds_are_left_alone(self):
        draft = chain([1, 2])
        assert worthwhile(draft, Acceptance(), STEEP, rows=1) is draft
        assert worthwhile(EMPTY, Acceptance(), STEEP, rows=1) is EMPTY

    @pytest.mark.parametrize("rows", [1, 3])
    @pytest.mark.parametrize("company", [1, 4])
    @pytest.mark.parametrize("most", [None, 0, 2, 6])
    def test_it_is_the_size_with_the_most_tokens_per_second(self, rows, company, most):
        sizes = set()
        for chance in (0.2, 0.5, 0.9):
            acceptance = Acceptance(_counts={"a": [1e6 * chance, 1e6]})
            for dear in (4.0, 9.0, 20.0):
                cost = CostCurve((1, 40), (1.0, dear))
                rates = [
                    sum(chance**i for i in range(size + 1)) / cost(company * (rows + size))
                    for size in range(7 if most is None else most + 1)
                ]
                found = worthwhile(chain(list(range(6)), ["a"] * 6), acceptance, cost, rows, most, company)
                assert len(found) == rates.index(max(rates))
                sizes.add(len(found))
        assert len(sizes) > 1 or most == 0

    def test_company_makes_rows_dearer(self):
        cost = CostCurve((1, 8, 64), (1.0, 1.1, 9.0))  # cheap up to eight rows, dear beyond
        draft = chain(list(range(6)), ["a"] * 6)
        alone = worthwhile(draft, _sure("a", 50, 20), cost, rows=1)
        together = worthwhile(draft, _sure("a", 50, 20), cost, rows=1, company=8)
        assert len(alone) > len(together)

    @given(
        st.lists(st.tuples(st.integers(-1, 6), st.sampled_from("abc")), max_size=7),
        st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3),
        st.lists(st.floats(0.0, 1.0), min_size=8, max_size=8),
    )
    def test_it_is_the_best_subtree(self, nodes, chances, steps):
        """Against all subsets that are closed under parents."""
        parents = [min(parent, node - 1) for node, (parent, _) in enumerate(nodes)]
        draft = Draft(list(range(len(nodes))), parents, kinds=[kind for _, kind in nodes])
        acceptance = Acceptance(_counts={k: [1e6 * c, 1e6] for k, c in zip("abc", chances, strict=True)})
        cost = CostCurve(tuple(range(1, 9)), tuple(itertools.accumulate([1.0, *steps[:7]])))
        chosen = worthwhile(draft, acceptance, cost, rows=1)

        def rate(kept: tuple[int, ...]) -> float:
            values = acceptance.values(draft)
            return (1 + sum(values[node] for node in kept)) / cost(1 + len(kept))

        best = max(
            rate(kept)
            for size in range(len(nodes) + 1)
            for kept in itertools.combinations(range(len(nodes)), size)
            if all(parents[node] == ROOT or parents[node] in kept for node in kept)
        )
        assert rate(tuple(chosen.tokens)) == pytest.approx(best)


class TestWithin:
    def test_depth(self):
        draft = Draft([1, 2, 3, 4], [ROOT, 0, 1, ROOT])
        assert within(draft, 3, frozenset()) is draft
        assert within(draft, 2, frozenset()).tokens == [1, 2, 4]
        assert len(within(draft, 0, frozenset())) == 0

    def test_nothing_follows_a_stop_token(self):
        draft = Draft([1, 2, 3, 4, 5], [ROOT, 0, 1, ROOT, 3])
        cut = within(draft, 9, frozenset({2, 4}))
        assert cut.tokens == [1, 2, 4]
        assert cut.parents == [ROOT, 0, ROOT]


def test_of_a_tree_the_path_with_the_most_expected_tokens_is_kept() -> None:
    acceptance = Acceptance()
    acceptance._counts = {"good": [90.0, 100.0], "bad": [10.0, 100.0]}
    tree = Draft([1, 2, 3, 4, 5], [-1, -1, 0, 1, 3], kinds=["bad", "good", "good", "bad", "bad"])
    found = best_path(tree, acceptance)
    assert found.is_chain
    assert found.tokens == [2, 4, 5]
    assert found.kinds == ["good", "bad", "bad"]
    # Nothing being known, the longest, and of equals the first.
    assert best_path(Draft([1, 2, 3, 4], [-1, -1, 0, 1]), acceptance).tokens == [1, 3]
    assert best_path(Draft([1, 2, 3], [-1, -1, 1]), acceptance).tokens == [2, 3]


class TestBestChain:
    @pytest.mark.parametrize("rate", [0.0, 0.3, 0.8, 1.0])
    @pytest.mark.parametrize("step", [0.0, 0.2, 3.0])
    def test_against_the_closed_form(self, rate, step):
        """Leviathan et al.: a chain of g brings (1 - rate^(g + 1)) / (1 - rate) tokens for one pass and g steps."""
        target = CostCurve((1, 8), (2.0, 3.4))
        gains = {0: 1.0}
        for length in range(1, 7):
            tokens = length + 1 if rate == 1 else (1 - rate ** (length + 1)) / (1 - rate)
            gains[length] = tokens * target(1) / (target(1 + length) + length * step)
        length, gain = best_chain(rate, target, step, 6)
        assert gain == pytest.approx(max(gains.values()))
        assert gains[length] == pytest.approx(gain)

    def test_plain_where_drafting_does_not_pay(self):
        assert best_chain(0.5, CostCurve((1, 2), (1.0, 2.0)), 0.0, 8) == (0, 1.0)
        assert best_chain(1.0, CostCurve.flat(), 0.0, 8) == (8, 9.0)
