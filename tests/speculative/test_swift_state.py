"""SWIFT's own bookkeeping: what a session knows of a set, the defaults by size of model, and which candidates it tries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from decodery.engine.cost import CostCurve
from decodery.engine.settings import Settings
from decodery.models.forward import Forward
from decodery.models.scorer import Work
from decodery.sampling.noise import Noise, Stage
from decodery.speculative.draft import EMPTY, ROOT, Draft
from decodery.speculative.loop import Round
from decodery.speculative.swift import layer_search
from decodery.speculative.swift.layer_search import LayerSearch, LayerSet
from decodery.speculative.swift.method import MEMORY, PRIOR, Pay, SkippingDrafter, Swift, SwiftState, _band
from decodery.speculative.verifiers import Verdict
from decodery.testing import ScriptedScorer, scripted_language_model, story_scorer
from decodery.testing.outputs import new_request

ONE, OTHER = LayerSet(frozenset({1})), LayerSet(frozenset({2}))


def _drafter(spec: str, layers: int = 3, **settings: Any) -> SkippingDrafter:
    lm = scripted_language_model(story_scorer())
    lm.network.layers = layers
    request, method = new_request(lm, spec, [1, 2], Settings(**{"seed": 0, **settings}))
    drafter = method.drafter(request)  # type: ignore[attr-defined]
    assert isinstance(drafter, SkippingDrafter)
    return drafter


class TestState:
    def test_a_set_is_believed_in_and_then_counted(self) -> None:
        search = LayerSearch(8, 0.3)
        search.current = ONE
        state = SwiftState(search)
        assert state.rate() == 1.0, "nothing is known of it"
        state.observe(ONE, 1, 3)
        assert state.rate() == pytest.approx((PRIOR + 1) / (PRIOR + 3))
        state.observe(OTHER, 0, 9)
        assert state.rate() == pytest.approx((PRIOR + 1) / (PRIOR + 3)), "that was another set's draft"
        search.current, search.best_score = OTHER, 0.5
        assert state.rate() == 0.5, "its matchness is the best guess"
        state.observe(OTHER, 2, 2)
        assert state.rate() == pytest.approx((0.5 * PRIOR + 2) / (PRIOR + 2))

    def test_old_text_is_forgotten(self) -> None:
        search = LayerSearch(8, 0.3)
        state = SwiftState(search)
        state.observe(search.current, 0, int(MEMORY - PRIOR))
        assert (state._right, state._tried) == (PRIOR, MEMORY), "as much as is remembered"
        state.observe(search.current, 1, 2)
        assert (state._right, state._tried) == ((PRIOR + 1) / 2, (MEMORY + 2) / 2)

    @pytest.mark.parametrize(
        ("drafted", "emitted", "right", "tried"),
        [([5, 6, 7], [5, 6, 7, 8], 3, 3), ([5, 6, 7], [5, 9], 1, 2), ([5, 6, 7], [9], 0, 1), ([], [9], 0, 0)],
    )
    def test_tokens_of_the_main_path_are_tried_up_to_the_first_wrong_one(
        self, drafted: list[int], emitted: list[int], right: int, tried: int
    ) -> None:
        drafter = _drafter("swift")
        drafter._chain = drafted
        drafter.observe(Round([1, 2], EMPTY, Verdict((), emitted[-1]), emitted, torch.zeros(1, 24), {}))
        assert (drafter._state._right, drafter._state._tried) == (PRIOR + right, PRIOR + tried)


class TestDefaults:
    @pytest.mark.parametrize(
        ("smaller_than", "size", "ends", "steps", "greedy", "sampled"),
        [
            (1e9, 0.1, (200, 60, 0.9), 6, (3, 4, 4, 4), (1, 3, 4, 4)),
            (0.0, 0.45, (1000, 300, 0.95), 25, (3, 5, 8, 10), (1, 3, 5, 10)),
        ],
    )
    def test_small_models_have_few_layers_to_spare(
        self, monkeypatch: pytest.MonkeyPatch, smaller_than: float, size: float, ends: object, steps: int,
        greedy: object, sampled: object,
    ) -> None:  # fmt: skip
        monkeypatch.setattr("decodery.speculative.swift.method.SMALL", smaller_than)
        drafter = _drafter("swift", layers=30)
        search = drafter._state.search
        assert search.size == int(56 * size)
        assert (search.max_iterations, search.max_tolerance, search.max_score) == ends
        assert (search.bayes_interval, search.seed, search.whole_layers) == (25, 0, False)
        assert (drafter._steps, drafter._widths) == (steps, greedy)
        assert (drafter._window, drafter._interval, drafter._threshold) == (32, 1, 0.8)
        assert _drafter("swift", temperature=1.0)._widths == sampled

    def test_a_model_is_as_large_as_what_it_multiplies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for head, steps in ((7.0, 25), (6.0, 6)):
            monkeypatch.setattr("decodery.speculative.swift.method.SMALL", 16.0)
            monkeypatch.setattr(ScriptedScorer, "work", Work(1.0, 2.0, head))
            lm = scripted_language_model(story_scorer())
            assert lm.network.layers == 3
            request, method = new_request(lm, "swift", [1, 2], Settings(seed=0))
            assert method.drafter(request)._steps == steps  # type: ignore[attr-defined]

    def test_what_is_given_is_taken(self) -> None:
        spec = (
            "swift(skip_ratio=0.5, max_opt_iterations=7, max_tolerance=8, max_score=0.3, max_steps=9, top_k=2, "
            "bayes_interval=4, search_seed=3, whole_layers=True, context_window=5, opt_interval=6, stop_threshold=0.1)"
        )
        drafter = _drafter(spec)
        search = drafter._state.search
        assert (search.max_iterations, search.max_tolerance, search.max_score) == (7, 8, 0.3)
        assert (search.bayes_interval, search.seed, search.whole_layers) == (4, 3, True)
        assert (drafter._steps, drafter._widths) == (9, (2, 2, 2, 2))
        assert (drafter._window, drafter._interval, drafter._threshold) == (5, 6, 0.1)
        assert _drafter("swift(max_score=0.0, skip_ratio=0.0)")._state.search.max_score == 0.0

        assert _drafter("swift(skip_ratio=0.5)", layers=30)._state.search.size == 28

    def test_it_asks_for_the_room_of_its_draft_or_of_a_candidate(self) -> None:
        assert Swift().most_nodes() == 250
        assert Swift(max_steps=3, top_k=4).most_nodes() == 32
        assert Swift(max_steps=3, top_k=4, context_window=5).most_nodes() == 12

    def test_a_set_that_is_not_searched_for_stays(self) -> None:
        search = _drafter("swift(optimise=False)")._state.search
        assert not search.optimising
        assert search.current == LayerSearch(3, 0.1).current
        assert _drafter("swift")._state.search.optimising


class TestWhereItDrafts:
    @staticmethod
    def _pay(first: float, cached: int) -> bool:
        """Whether the search and a draft are tried after so many tokens, on a curve whose rows cost `first` at 10 tokens."""

        class Curve(CostCurve):
            def at(self, context: int) -> CostCurve:
                return CostCurve((1, 2), (1.0, first if context == 10 else 1.0))

        drafter = _drafter("swift(max_steps=1, top_k=1)")
        drafter._pay = Pay(Curve((1,), (1.0,)), Work(1.0, 1.0), 3)
        drafter._state.search.optimising = False
        drafter._state.search.current = LayerSet(frozenset({1}), frozenset({1}))  # a third is left out
        drafter._sequence = type("Cached", (), {"length": 1})()  # type: ignore[assignment]
        return drafter.propose(list(range(cached)), 5) is not EMPTY

    def test_where_it_must_not_be_given_up_nothing_is_reckoned(self) -> None:
        assert _drafter("swift(bypass=False)")._pay is None
        assert _drafter("swift")._pay is not None

    def test_a_step_of_the_draft_is_one_row(self) -> None:
        """Half of the four sublayers of the two inner layers: at best both feed-forwards."""
        pay = Pay(CostCurve((1, 2), (16.0, 20.0)), Work(1.0, 3.0), 4)
        search = LayerSearch(4, 0.5)
        step = 16.0 * (1 - 2 * 3 / 16)
        found = [(length + 1) * 16 / (16 + 4 * length + length * step) for length in range(1, 4)]
        assert pay.ceiling(search, 3) == pytest.approx(max(found))

    def test_bands_begin_above_their_lower_end(self) -> None:
        assert [_band(sure) for sure in (0.96, 0.95, 0.81, 0.8, 0.51, 0.5, 0.0)] == [0, 1, 1, 2, 2, 3, 3]

    def test_it_is_tried_where_it_might_bring_a_tenth(self) -> None:
        """Two tokens cost two thirds and a pass of two rows, one costs one."""
        assert self._pay(2 / 1.1 - 2 / 3 - 0.01, 10)
        assert not self._pay(2 / 1.1 - 2 / 3 + 0.01, 10)
        assert self._pay(2 / 1.1 - 2 / 3 + 0.01, 11), "by the curve of this context"

    @pytest.mark.parametrize(("written", "steps"), [(0, 1), (1, 0), (15, 0), (16, 1), (17, 0)])
    def test_where_it_does_not_pay_one_token_is_drafted_every_sixteenth_position(
        self, written: int, steps: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drafter = _drafter("swift(max_steps=5, top_k=1)")
        assert drafter._pay is not None
        drafter._state.search.optimising = False
        drafter._state._start()
        drafter._state._right = 0.0  # never right: no draft pays
        monkeypatch.setattr(type(drafter._request), "position", written)
        grown: list[int] = []

        def grow(sequence: Any, tokens: Any, steps: int) -> Any:
            grown.append(steps)
            return EMPTY
            yield

        monkeypatch.setattr(drafter, "_grow", grow)
        drafter._sequence = type("Cached", (), {"length": 1})()  # type: ignore[assignment]
        proposal = drafter.propose([1, 2, 3], 4)
        with pytest.raises(StopIteration):
            next(proposal)  # type: ignore[arg-type]
        assert grown == [1] * steps
        drafter._state._right = drafter._state._tried
        with pytest.raises(StopIteration):
            next(drafter.propose([1, 2, 3], 4))  # type: ignore[arg-type]
        assert grown[-1] == 4, "where it pays, as far as may be drafted"

    def test_the_prompt_goes_through_the_whole_model_first(self) -> None:
        drafter = _drafter("swift(bypass=False)")
        drafter.begin(drafter._request.new_sequence())
        assert drafter.propose([1, 2], 4) is EMPTY
        assert drafter._rounds == 1


class TestSteps:
    """A draft in the cache of the target, behind its prompt."""

    @staticmethod
    def _grown(drafter: SkippingDrafter, steps: int) -> Draft:
        network, sequence = drafter._request.host.network, drafter._request.new_sequence()
        network.run([Forward(sequence, [1])])
        drafter.begin(sequence)
        grow = drafter._grow(sequence, [1, 2], steps)
        ask = next(grow)
        while True:
            try:
                ask = grow.send(network.run([ask])[0])
            except StopIteration as done:
                assert sequence.length == 1, "its rows are taken out again"
                return done.value  # type: ignore[no-any-return]

    def test_each_step_is_drawn_at_its_own_position(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drafter = _drafter("swift(bypass=False, stop_threshold=0.0, top_k=2)", temperature=1.0)
        asked: list[tuple[int, Stage, object]] = []
        choose = Noise.choose

        def spied(self: Noise, law: Any, position: int, stage: Stage, index: Any = 0, path: Any = ()) -> int:
            asked.append((position, stage, index))
            return choose(self, law, position, stage, index, path)

        monkeypatch.setattr(Noise, "choose", spied)
        draft = self._grown(drafter, 3)
        assert max(draft.depths()) == 3
        position = drafter._request.position
        firsts = [(place, stage) for place, stage, index in asked if index == 0]
        assert firsts == [(position + step, Stage.DRAFT) for step in range(3)]
        assert {index for place, _, index in asked if place == position} == set(range(len(draft.children[ROOT])))

    @pytest.mark.parametrize("threshold", [0.0, 1.0])
    def test_it_ends_after_a_token_that_is_not_likely_enough(self, threshold: float) -> None:
        drafter = _drafter(f"swift(bypass=False, stop_threshold={threshold}, top_k=1)")
        assert len(self._grown(drafter, 3)) == (3 if threshold == 0 else 1)

    def test_it_ends_with_a_stop_token(self) -> None:
        first = self._grown(_drafter("swift(bypass=False, stop_threshold=0.0, top_k=1)"), 3).tokens[0]
        drafter = _drafter("swift(bypass=False, stop_threshold=0.0, top_k=1)", stop_token_ids=(first,))
        assert list(self._grown(drafter, 3).tokens) == [first]

    def test_where_all_is_forbidden_there_is_no_draft(self) -> None:
        bias = {token: -float("inf") for token in range(24)}
        drafter = _drafter("swift(bypass=False)", logit_bias=bias)
        assert drafter._children(torch.zeros(24), ROOT, {}) == ([], 0.0, 0)
        assert len(self._grown(drafter, 3)) == 0


class TestCandidates:
    def test_every_so_many_come_from_the_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[int, int]] = []

        class Process:
            def __init__(self, points: Any, scores: Any) -> None:
                asked.append((search.iterations, len(points)))

            def promising(self, generator: np.random.Generator) -> Any:
                return np.linspace(1.0, 0.0, 12)

        monkeypatch.setattr(layer_search, "GaussianProcess", Process)
        search = LayerSearch(8, 0.25, bayes_interval=3)
        for _ in range(9):
            candidate = search.candidate()
            if search.iterations % 3 == 0:
                assert candidate == LayerSet(frozenset({1, 2, 3}), frozenset())
            search.register(candidate, 0.1)
        assert asked == [(3, 2), (6, 5), (9, 8)]
        asked.clear()
        search = LayerSearch(8, 0.25, bayes_interval=1)
        for _ in range(3):
            search.register(search.candidate(), 0.1)
        assert asked == [(3, 2)], "one point is too few"
        asked.clear()
        search = LayerSearch(8, 0.25, bayes_interval=0)
        for _ in range(30):
            search.register(search.candidate(), 0.1)
        assert not asked

    @pytest.mark.parametrize("whole", [False, True])
    def test_a_set_and_its_point(self, whole: bool) -> None:
        search = LayerSearch(6, 0.5, whole_layers=whole)
        vector = np.array([0.1, 0.9, 0.2, 0.8] if whole else [0.1, 0.9, 0.2, 0.8, 0.7, 0.0, 0.0, 0.95])
        found = search._set_of(vector)
        both = frozenset({2, 4})
        assert found == (LayerSet(both, both) if whole else LayerSet(both, frozenset({1, 4})))
        assert search._vector_of(found).tolist() == ([0, 1, 0, 1] if whole else [0, 1, 0, 1, 1, 0, 0, 1])

    def test_it_ends_after_as_many_as_are_tolerated(self) -> None:
        search = LayerSearch(8, 0.25, max_iterations=100, max_tolerance=2, max_score=0.9)
        for place, left in enumerate((True, True, True, False)):
            search.register(search.candidate(), 0.5)
            assert (search.tolerance, search.optimising) == (place, left)

    def test_a_candidate_waits_for_its_round_and_the_window(self) -> None:
        """Five tokens to compare need seven written ones, and every second round brings a candidate."""
        drafter = _drafter("swift(context_window=5, opt_interval=2)", max_new_tokens=20)
        request = drafter._request
        sequence = request.new_sequence()
        request.host.network.run([Forward(sequence, [1, 2])])
        found = []
        for written in range(1, 10):
            request.commit([written], [])
            for drafter._rounds in (1, 2):
                asked = list(_forwards(drafter, sequence))
                if asked:
                    found.append((written, drafter._rounds))
                    assert list(asked[0].tokens) == request.new_tokens[:5]
        assert found == [(7, 2), (8, 2), (9, 2)]


def _forwards(drafter: SkippingDrafter, sequence: Any) -> Any:
    search = drafter._search(sequence)
    try:
        asked = next(search)
        yield asked
        search.send(drafter._request.host.network.run([asked])[0])
    except StopIteration:
        return
