"""How the cascade's tree grows: against a plain reading of its rule, what a round costs by hand, and when it looks again."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decodery.engine.cost import CostCurve
from decodery.engine.settings import Settings
from decodery.models.forward import Ranking
from decodery.models.owner import Stability
from decodery.speculative.cascade.growing import (
    AHEAD,
    NODE_SECONDS,
    ROUND_SECONDS,
    Candidate,
    Growing,
    Price,
    Prices,
    Rest,
)
from decodery.speculative.cascade.method import BRANCHING, LEAST, MOST_NODES, Cascade, CascadeDrafter
from decodery.speculative.cascade.sources import (
    LEAST_WEIGHT,
    LEVELS,
    LONGEST,
    MOST_ROWS,
    PRIOR,
    RATE,
    Answer,
    Copied,
    Mixture,
    Recycled,
    Sureness,
    Tabled,
    Tail,
    level,
)
from decodery.speculative.continuations.successors import SuccessorTable
from decodery.speculative.draft import EMPTY, ROOT, Draft, chain
from decodery.speculative.loop import Round
from decodery.speculative.verifiers import Verdict
from decodery.testing import ScriptedScorer, scripted_language_model, story_scorer
from decodery.testing.outputs import new_request

PAIR, SINGLE = ("recycled", 2), ("recycled", 1)


class TestPrice:
    def test_a_node_is_averaged_over_the_next_ones(self) -> None:
        price = Price([2.0, 3.0, 3.0, 3.0, 4.0, 8.0], plain=2.0)
        assert price.of_a_node(0) == pytest.approx((4.0 - 2.0) / (4 * 2.0))
        assert price.of_a_node(1) == pytest.approx((8.0 - 3.0) / (4 * 3.0))
        assert price.pays(0, 1.25)
        assert not price.pays(0, 1.0), "as fast as without is not faster"
        assert not price.pays(4, 2.0)
        assert price.pays(4, 2.1)

    def test_a_round_is_of_all_that_share_the_pass(self) -> None:
        class Curve(CostCurve):
            def at(self, context: int) -> CostCurve:
                return CostCurve((1, 101), (1.0 * context, 101.0 * context))

        prices = Prices(Curve((1,), (1.0,)), most=3)
        price = prices.at(2, 10)
        assert price.plain == pytest.approx(10 * 2)
        assert len(price.seconds) == 3 + AHEAD + 1
        for nodes, seconds in enumerate(price.seconds):
            assert seconds == pytest.approx(10 * 2 * (1 + nodes) + 2 * (ROUND_SECONDS + nodes * NODE_SECONDS))
        assert prices.at(2, 64) is price, "contexts are told apart by steps of 64"
        assert prices.at(2, 65) is not price
        assert prices.at(3, 10).plain == pytest.approx(30)

    def test_without_a_curve_nodes_are_free(self) -> None:
        price = Prices(None, most=5).at(3, 100)
        assert [price.of_a_node(nodes) for nodes in range(6)] == [0.0] * 6
        assert price.pays(5, 1.01)
        assert not price.pays(0, 1.0), "no draft at all is no reason to send one"


def test_where_drafting_does_not_pay_it_is_looked_for_ever_more_rarely() -> None:
    rest, looks = Rest(), []
    for place in range(40):
        if rest.over():
            looks.append(place)
            rest.learn(False)
        assert rest.lasts == (place + 1 not in (0, 2, 6, 14, 23, 32))
    assert looks == [0, 2, 6, 14, 23, 32]
    rest.learn(True)
    assert not rest.lasts
    assert rest.over()
    assert rest.over(), "where it pays, every round looks"
    rest.learn(False)
    assert [rest.over() for _ in range(3)] == [False, True, True], "and it begins anew"


class TestSureness:
    def test_levels_are_thirds_of_a_factor_of_two(self) -> None:
        assert [level(2 ** (-place / 3) * 0.999) for place in range(25)] == [*range(LEVELS), *[LEVELS - 1] * 5]
        assert level(1.0) == 0

    def test_it_begins_with_the_mixture_s_own_word_and_learns(self) -> None:
        sureness = Sureness()
        assert sureness.chances() == pytest.approx([2 ** (-(place + 0.5) / 3) for place in range(LEVELS)])
        sureness.observe(chain([7, 8], [3, 5]), [7, 9])
        assert sureness.chance(3) == pytest.approx((8 * 2 ** (-3.5 / 3) + 1) / 9)
        assert sureness.chance(5) == pytest.approx(8 * 2 ** (-5.5 / 3) / 9)
        assert sureness.chances()[3] == sureness.chance(3)


class TestMixture:
    def test_a_law_is_the_shares_by_weight(self) -> None:
        answers: list[Answer] = [(PAIR, [3, 5], (0.5, 0.25)), (SINGLE, [5], (1.0,))]
        total = PRIOR[PAIR] + PRIOR[SINGLE]
        law = dict(Mixture().law(answers))
        assert law == pytest.approx({3: 0.5 * PRIOR[PAIR] / total, 5: (0.25 * PRIOR[PAIR] + PRIOR[SINGLE]) / total})
        even = Mixture()
        even._weights.update({PAIR: 0.5, SINGLE: 0.5})
        assert dict(even.law(answers, 0.25)) == {3: 0.25, 5: 0.625}, "as likely as the least is likely enough"
        assert dict(even.law(answers, 0.26)) == {5: 0.625}
        weak: list[Answer] = [(("table", 1, 0), [3], (1.0,))]
        assert dict(Mixture().law(weak)) == pytest.approx({3: PRIOR["table", 1, 0] / LEAST_WEIGHT})

    def test_a_step_is_the_difference_of_responsibility_and_weight(self) -> None:
        mixture = Mixture()
        answers: list[Answer] = [
            (PAIR, [3, 3], (0.25, 0.25)),
            (SINGLE, [5, 3], (0.6, 0.4)),
            (("table", 1, 0), [9], (1.0,)),
        ]
        weights = [PRIOR[label] for label, _, _ in answers]
        parts = [0.5 * weights[0], 0.4 * weights[1], 0.0]
        mixture.learn(answers, 3)
        for (label, _, _), weight, part in zip(answers, weights, parts, strict=True):
            step = RATE * (part / sum(parts) - weight / sum(weights))
            assert mixture._weights[label] == pytest.approx(weight * exp(step))

    @pytest.mark.parametrize(("right", "bound"), [(3, 4.0), (5, -6.0)])
    def test_weights_stay_between_their_bounds(self, right: int, bound: float) -> None:
        mixture = Mixture()
        answers: list[Answer] = [(PAIR, [3], (1.0,)), (SINGLE, [5], (1.0,)), (("table", 1, 0), [right], (1.0,))]
        mixture._weights.update({PAIR: exp(3.999 if bound > 0 else -5.999), SINGLE: 1.0, ("table", 1, 0): 1.0})
        for _ in range(200):
            mixture._weights[SINGLE] = 1.0 if bound > 0 else exp(-6)
            mixture._weights["table", 1, 0] = 1e9 if bound > 0 else exp(-6)
            mixture.learn(answers[: 2 if bound < 0 else 3], right)
        assert log(mixture._weights[PAIR]) == pytest.approx(bound, abs=0.01)


class Scripted:
    """A source that says the same after the same last token."""

    def __init__(self, rows: dict[int, dict[int, float]]):
        self._rows = rows

    def answers(self, tail: Tail, into: list[Answer]) -> None:
        if tail[-1] in self._rows:
            into.append((PAIR, list(self._rows[tail[-1]]), tuple(self._rows[tail[-1]].values())))


ROWS = {0: {1: 0.5, 2: 0.3, 3: 0.15}, 1: {0: 0.45, 4: 0.45}, 2: {2: 0.9, 1: 0.05}, 3: {4: 0.8}, 4: {0: 0.35, 3: 0.35}}


class TestGrowing:
    def test_candidates_come_out_by_chance_and_then_by_age(self) -> None:
        growing = Growing(
            [Scripted({1: {5: 0.5, 6: 0.25, 7: 0.5, 8: 0.01}})], Mixture(), [0.5, 0.5, 0.5, 0.4, 0.4, *[0.25] * 15]
        )
        growing.look(ROOT, (9, 1), 4, 0.8, 0.2)
        first, second, third = (growing.best() for _ in range(3))
        assert first is not None
        assert second is not None
        assert [first.token, second.token] == [5, 7], "the same chance, and the first one came first"
        assert first == Candidate(-0.8 * 0.4, 1, 5, ROOT, 3, (9, 1), 5)
        assert first.reached == pytest.approx(0.32)
        assert third is not None
        assert (third.token, third.kind, third.reached) == (6, 6, pytest.approx(0.2)), "as likely as the floor stays"
        assert growing.best() is None, "and what is rarer goes"
        assert growing.answers == {ROOT: [(PAIR, [5, 6, 7, 8], (0.5, 0.25, 0.5, 0.01))]}
        assert (growing.add(second), growing.add(first), len(growing)) == (0, 1, 2)
        draft = growing.draft()
        assert (draft.tokens, draft.parents, draft.kinds) == ([7, 5], [ROOT, ROOT], [3, 3])

    def test_the_mixture_is_asked_for_what_might_reach_the_floor(self) -> None:
        """A token is right at most four times as often as the mixture says."""
        asked: list[float] = []

        class Asked(Mixture):
            def law(self, answers: Sequence[Answer], least: float = 0.0) -> list[tuple[int, float]]:
                asked.append(least)
                return []

        Growing([], Asked(), []).look(ROOT, (1,), 0, 0.5, 0.2)
        assert asked == [pytest.approx(0.1)]


def _read(
    rows: dict[int, dict[int, float]], last: int, most: int, deepest: int, stops: set[int], price: Price
) -> list[tuple[int, ...]]:
    """The paths of the tree's nodes in the order in which they are found, best first; none where they do not pay."""
    chances = Sureness().chances()
    found: list[tuple[float, int, tuple[int, ...]]] = []
    nodes: list[tuple[int, ...]] = []
    number, floor, expected = 0, LEAST, 1.0
    look: tuple[tuple[int, ...], float] | None = ((), 1.0)
    while True:
        if look is not None:
            path, reached = look
            for token, share in rows.get((last, *path)[-1], {}).items():
                chance = reached * chances[level(share)]
                if chance >= floor:
                    number += 1
                    found.append((-chance, number, (*path, token)))
        if len(nodes) == most or not found:
            break
        found.sort()
        rarity, _, path = found.pop(0)
        floor = max(LEAST, expected * price.of_a_node(len(nodes)))
        if -rarity < floor:
            break
        expected -= rarity
        nodes.append(path)
        grows = len(path) < deepest and -rarity > BRANCHING * floor and path[-1] not in stops
        look = (path, -rarity) if grows else None
    return nodes if price.pays(len(nodes), expected) else []


def _drafter(
    lm: Any,
    cost: CostCurve | None,
    nodes: int,
    depth: int,
    source: Any,
    prompt: Sequence[int] = (7, 0),
    **settings: Any,
) -> CascadeDrafter:
    request, _ = new_request(lm, "cascade(sources=recycled)", list(prompt), Settings(seed=0, **settings))
    return CascadeDrafter(request, cost, [source], Mixture(), Sureness(), nodes, depth)


def _paths(draft: Draft) -> list[tuple[int, ...]]:
    return [tuple(draft.tokens[i] for i in draft.path(node)) for node in range(len(draft))]


class TestTree:
    @pytest.mark.parametrize("stops", [set(), {1}])
    @pytest.mark.parametrize(("nodes", "depth", "asked"), [(64, 9, 9), (64, 3, 9), (64, 9, 3), (7, 9, 9), (1, 9, 9)])
    def test_it_is_grown_best_first(self, nodes: int, depth: int, asked: int, stops: set[int]) -> None:
        lm = scripted_language_model(story_scorer(), stop_ids=tuple(stops))
        draft = _drafter(lm, None, nodes, depth, Scripted(ROWS)).propose([7, 0], asked)
        expected = _read(ROWS, 0, nodes, min(depth, asked), stops, Prices(None, nodes).at(1, 2))
        assert _paths(draft) == expected
        assert len(expected) >= min(nodes, 7)

    @pytest.mark.parametrize("seconds", [1.01, 1.1, 1.3, 1.6, 2.0])
    def test_it_ends_where_a_further_node_does_not_pay(self, seconds: float) -> None:
        curve = CostCurve((1, 2), (1.0, seconds))
        drafter = _drafter(scripted_language_model(story_scorer()), curve, MOST_NODES, 16, Scripted(ROWS))
        assert _paths(drafter.propose([7, 0], 9)) == _read(
            ROWS, 0, MOST_NODES, 9, set(), Prices(curve, MOST_NODES).at(1, 2)
        )

    def test_those_cases_are_of_different_sizes(self) -> None:
        curves = [CostCurve((1, 2), (1.0, seconds)) for seconds in (1.01, 1.1, 1.3, 1.6, 2.0)]
        sizes = [len(_read(ROWS, 0, MOST_NODES, 9, set(), Prices(curve, MOST_NODES).at(1, 2))) for curve in curves]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) >= 4
        assert sizes[-1] == 0

    def test_a_network_that_scores_chains_gets_the_likeliest_path(self) -> None:
        lm = scripted_language_model(ScriptedScorer(lambda prefix: torch.zeros(24), 24))
        lm.network.chains_only = True
        draft = _drafter(lm, None, 64, 9, Scripted(ROWS)).propose([7, 0], 4)
        assert draft.is_chain
        assert list(draft.tokens) == [1, 0, 1, 0]

    def test_the_sources_see_the_last_tokens(self) -> None:
        seen: list[Tail] = []

        class Watched(Scripted):
            def answers(self, tail: Tail, into: list[Answer]) -> None:
                seen.append(tail)
                super().answers(tail, into)

        text = [*range(12), 0]
        _drafter(scripted_language_model(story_scorer()), None, 64, 2, Watched(ROWS), text).propose(text, 9)
        assert LONGEST == 8
        assert seen[0] == (5, 6, 7, 8, 9, 10, 11, 0)
        assert seen[1] == (6, 7, 8, 9, 10, 11, 0, 1)


class TestLearning:
    def test_each_accepted_node_teaches_what_its_sources_were_worth(self) -> None:
        """The root's answers and the first node's are held against what followed there; another node's teach nothing."""
        drafter = _drafter(scripted_language_model(story_scorer()), None, 64, 3, Scripted(ROWS))
        draft = drafter.propose([7, 0], 3)
        node = _paths(draft).index((2,))
        expected = Mixture()
        expected.learn([(PAIR, list(ROWS[0]), tuple(ROWS[0].values()))], 2)
        expected.learn([(PAIR, list(ROWS[2]), tuple(ROWS[2].values()))], 1)
        drafter.observe(Round([7, 0], draft, Verdict((node,), 1), [2, 1], torch.zeros(len(draft) + 1, 24), {}))
        assert drafter._mixture._weights == expected._weights
        right = Sureness()
        right.observe(draft, [2, 1])
        assert drafter._right.chances() == right.chances() != Sureness().chances()

    def test_the_row_of_an_accepted_node_wins(self) -> None:
        """The pair 1, 2 stands twice in the draft: what was scored where the text went is kept, though it came first."""
        recycled = Recycled()
        drafter = _drafter(scripted_language_model(story_scorer()), None, 64, 3, recycled, (7, 1))
        draft = chain([2, 1, 2], [0, 0, 0])
        ranking = Ranking([[11, 3], [12, 3], [13, 3], [14, 3]], [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
        for path, kept in (((0,), 12), ((), 14), ((0, 1, 2), 14)):
            drafter.observe(
                Round([7, 1], draft, Verdict(path, 5), [*draft.tokens[: len(path)], 5], torch.zeros(0), {}, ranking)
            )
            answers: list[Answer] = []
            recycled.answers((1, 2), answers)
            assert [ids[0] for _, ids, _ in answers] == [kept, kept]
            assert answers[0][2] == ([0.8, 0.2] if kept == 12 else [0.6, 0.4])
            answers.clear()
            recycled.answers((7, 1), answers)
            assert answers == [(SINGLE, [13, 3], [0.7, 0.3]), (PAIR, [11, 3], [0.9, 0.1])]

    def test_a_text_of_one_token_has_no_pair(self) -> None:
        recycled = Recycled()
        drafter = _drafter(scripted_language_model(story_scorer()), None, 64, 3, recycled, (1,))
        ranking = Ranking([[11]], [[0.9]])
        drafter.observe(Round([1], EMPTY, Verdict((), 5), [5], torch.zeros(0), {}, ranking))
        assert set(recycled._rows) == {(-1, 1), 1}

    def test_without_a_ranking_the_scores_are_ranked(self) -> None:
        recycled = Recycled()
        drafter = _drafter(scripted_language_model(story_scorer()), None, 64, 3, recycled, (7, 1))
        logits = torch.arange(24.0).flip(0)[None]
        drafter.observe(Round([7, 1], EMPTY, Verdict((), 5), [5], logits, {}))
        answers: list[Answer] = []
        recycled.answers((3, 1), answers)
        [(_, ids, shares)] = answers
        assert list(ids) == [0, 1, 2, 3, 4], "of the eight likeliest those of at least a hundredth"
        assert shares == pytest.approx(logits.softmax(-1)[0, :5].tolist())


class TestSources:
    def test_a_share_of_a_hundredth_is_remembered(self) -> None:
        recycled = Recycled()
        recycled.learn(1, 2, [5, 6, 7], [0.9, 0.01, 0.009])
        assert recycled._rows[2] == (SINGLE, [5, 6], [0.9, 0.01])

    def test_the_older_half_is_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert MOST_ROWS == 1 << 20
        monkeypatch.setattr("decodery.speculative.cascade.sources.MOST_ROWS", 8)
        recycled = Recycled()
        for token in range(10, 14):
            recycled.learn(token + 10, token, [1], [1.0])
        assert len(recycled._rows) == 8, "as many as there is room for"
        recycled.learn(24, 14, [1], [1.0])
        assert list(recycled._rows) == [(22, 12), 12, (23, 13), 13, (24, 14), 14]

    def test_answers_that_agree_count_as_one_that_was_seen_so_often(self) -> None:
        copied = Copied()
        copied.read([1, 5, 1, 5, 2, 5, 1])
        answers: list[Answer] = []
        copied.answers((2, 5, 1), answers)
        assert answers == [(("copied", 1, 2), (5,), (1.0,)), (("copied", 2, 1), (5,), (1.0,))]
        answers.clear()
        copied.answers((5,), answers)
        assert answers == [(("copied", 1, 0), [1, 2, 1], (1 / 3,) * 3)]

    def test_a_run_of_the_table_that_was_seen_often_counts_as_seen_four_times(self) -> None:
        context = np.array([[0, 0, 2]] * 9)
        ids, shares = np.array([[7]] * 9), np.ones((9, 1), dtype=np.float32)
        answers: list[Answer] = []
        Tabled(SuccessorTable.average(context, ids, shares, 50, "words")).answers((2,), answers)
        assert [(label, list(named)) for label, named, _ in answers] == [(("table", 1, 4), [7])]


class TestMethod:
    @staticmethod
    def _made(method: Cascade, stability: Stability | None = None) -> CascadeDrafter:
        lm = scripted_language_model(story_scorer())
        lm.network.stability = stability
        request, chosen = new_request(lm, method, [1, 2], Settings(seed=0))
        drafter = chosen.drafter(request)  # type: ignore[attr-defined]
        assert isinstance(drafter, CascadeDrafter)
        return drafter

    @pytest.mark.parametrize(("rows", "most"), [(None, MOST_NODES), (8, 7), (200, MOST_NODES)])
    def test_a_tree_that_pays_is_no_larger_than_rounding_allows(self, rows: int | None, most: int) -> None:
        drafter = self._made(Cascade(), None if rows is None else Stability(rows, 1))
        assert (drafter._most, drafter._depth) == (most, 16)
        assert drafter._prices._cost is not None

    def test_nodes_that_were_asked_for_are_drafted_whatever_they_cost(self) -> None:
        drafter = self._made(Cascade(nodes=30, depth=5), Stability(8, 1))
        assert (drafter._most, drafter._depth) == (30, 5)
        assert drafter._prices._cost is None
        assert (Cascade(nodes=30).most_nodes(), Cascade().most_nodes()) == (30, MOST_NODES)
        assert (Cascade(nodes=30).paced, Cascade().paced) == (False, True)

    def test_the_shipped_table_takes_part_where_it_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And needs no look at the tokenizer: it was made for the model of this name."""
        vocabulary = story_scorer().vocabulary
        table = SuccessorTable.average(
            np.array([[0, 0, 2]]), np.array([[7]]), np.ones((1, 1), dtype=np.float32), vocabulary, "words"
        )
        monkeypatch.setattr("decodery.speculative.cascade.method.ARTIFACTS", tmp_path)
        assert [type(source) for source in self._made(Cascade())._sources] == [Copied, Recycled]
        table.save(tmp_path / f"successors-{story_scorer().name}.npz")
        assert [type(source) for source in self._made(Cascade())._sources] == [Copied, Recycled, Tabled]
        assert [type(source) for source in self._made(Cascade(sources="copied"))._sources] == [Copied]
