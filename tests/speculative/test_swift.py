"""SWIFT: the laws of every drafter, the draft's tree and cache, the search while decoding, and where it refuses to draft."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from decodery.engine.cost import CostCurve
from decodery.engine.settings import Settings
from decodery.errors import MethodUnavailable
from decodery.models.forward import Forward, Slots
from decodery.models.scorer import Work
from decodery.speculative.draft import ROOT, Draft, Siblings
from decodery.speculative.swift.layer_search import LayerSearch, LayerSet
from decodery.speculative.swift.method import Pay, SkippingDrafter, Swift, SwiftState
from decodery.testing import DrafterLaws, scripted_language_model, story_scorer, toy_language_model, watched
from decodery.testing.outputs import finished, new_request

EAGER = "swift(bypass=False, context_window=4, stop_threshold=0.2)"


class TestSwift(DrafterLaws):
    methods = ("swift", EAGER)
    samples = 600

    def test_sampled_law_is_that_of_plain_decoding_exactly(self):
        """Two tokens instead of three: a tree of draws without replacement has very many outcomes."""
        for method in self.methods:
            for settings in (
                Settings(temperature=0.7, repetition_penalty=1.5, max_new_tokens=2, seed=0),
                Settings(temperature=1.0, top_p=0.8, max_new_tokens=2, seed=0),
            ):
                lm, scorer = self.tabular_host(3)
                self.assert_exact(lm, scorer, method, settings)


def stored(tmp_path, lm, attention: tuple[int, ...] = (), mlp: tuple[int, ...] = (), **parameters: Any) -> Swift:
    """The method with a fixed set."""
    path = tmp_path / f"{attention}{mlp}.json"
    LayerSet(frozenset(attention), frozenset(mlp)).write(path, 0.5, lm.network.fingerprint())
    return Swift(layer_set=str(path), **{"bypass": False, **parameters})


class TestIdentity:
    """On a network in float32."""

    SETS = (((), ()), ((1, 3), (1, 3)), ((2,), (1, 4)), ((1, 2, 3, 4), (1, 2, 3, 4)), ((0, 5), (5,)))

    @pytest.mark.parametrize(("attention", "mlp"), SETS, ids=str)
    def test_greedy_output_does_not_depend_on_the_set(self, tmp_path, attention, mlp):
        lm = toy_language_model(seed=1, layers=6)
        method = stored(tmp_path, lm, attention, mlp, stop_threshold=0.1)
        for prompt in ("hello", "a b c", "no"):
            plain = lm.generate(prompt, method="autoregressive", max_new_tokens=40)
            reply = lm.generate(prompt, method=method, max_new_tokens=40)
            assert reply.token_ids == plain.token_ids
            assert reply.stats.drafted > 0

    def test_greedy_output_does_not_depend_on_the_search(self):
        lm = toy_language_model(seed=1, layers=6)
        method = (
            "swift(bypass=False, context_window=4, max_score=1.0, skip_ratio=0.4, bayes_interval=3, stop_threshold=0.1)"
        )
        prompts = ["hello", "a b c", "no"]
        plain = [lm.generate(p, method="autoregressive", max_new_tokens=40, ignore_eos=True).token_ids for p in prompts]
        sets = set()
        for _ in range(2):
            for prompt, expected in zip(prompts, plain, strict=True):
                reply = lm.generate(prompt, method=method, max_new_tokens=40, ignore_eos=True)
                assert reply.token_ids == expected
                sets.add(_state(lm).search.current)
        assert len(sets) > 1, "the set must change for this to test something"
        packed = lm.generate(prompts, method=method, max_new_tokens=40, ignore_eos=True, session="packed")
        assert [reply.token_ids for reply in packed] == plain

    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_a_set_of_nothing_is_always_right(self, tmp_path, temperature):
        """The draft is the target itself: a wrong position or row of the draft's cache would show."""
        lm = toy_language_model(seed=1, layers=4)
        method = stored(tmp_path, lm, stop_threshold=0.0, max_steps=4, top_k=1)
        for seed in range(4):
            settings = {"max_new_tokens": 26, "temperature": temperature, "seed": seed, "ignore_eos": True}
            stats = lm.generate("hello there", method=method, **settings).stats
            # The first round takes the prompt through the model and drafts nothing; then 5 tokens a round.
            assert stats.rounds == 1 + 5
            assert stats.accepted == stats.drafted == 20

    def test_a_set_of_nothing_matches_everything(self):
        lm = toy_language_model(seed=1, layers=4)
        state = _searched(lm, LayerSet())
        assert state.search.best_score == 1.0


def _state(lm) -> SwiftState:
    [state] = [value for value in lm.memory.values() if isinstance(value, SwiftState)]
    return state


def _searched(lm, chosen: LayerSet | None, method: str = "swift(bypass=False, context_window=8)") -> SwiftState:
    """The state after a request whose search was given one set to score."""
    request, swift = new_request(
        lm, method, lm.tokenize("hello there"), Settings(max_new_tokens=16, ignore_eos=True, seed=0)
    )
    state = SwiftState(swift.drafter(request)._state.search)
    if chosen is not None:
        state.search.candidate = lambda: chosen  # type: ignore[method-assign]
    lm.memory.clear()
    lm.memory["default", ("swift", swift.spec())] = state
    finished(request, swift)
    return state


class TestCache:
    def test_the_committed_rows_stay_as_they_are_bit_for_bit(self, monkeypatch):
        """After every draft: in all layers, and nothing is left behind them."""
        lm = toy_language_model(seed=1, layers=6)
        method = "swift(bypass=False, context_window=4, max_score=1.0, skip_ratio=0.4, stop_threshold=0.0)"
        original = SkippingDrafter.propose
        drafts = 0

        def propose(self, tokens, depth):
            nonlocal drafts
            sequence = self._sequence
            rows, known = sequence.length, list(sequence.tokens)
            before = [sequence.cache.both(layer)[:, :, :rows].clone() for layer in range(6) if rows]
            proposal = original(self, tokens, depth)
            draft = proposal if isinstance(proposal, Draft) else (yield from proposal)
            assert sequence.tokens == known
            assert sequence.positions == list(range(rows))
            for layer, kept in enumerate(before):
                assert torch.equal(sequence.cache.both(layer)[:, :, :rows], kept)
            drafts += bool(len(draft))
            return draft

        monkeypatch.setattr(SkippingDrafter, "propose", propose)
        lm.generate("hello", method=method, max_new_tokens=40, ignore_eos=True)
        assert drafts > 5

    def test_after_a_request_all_layers_hold_what_a_fresh_pass_writes(self):
        lm = toy_language_model(seed=1, layers=6)
        method = "swift(bypass=False, context_window=4, skip_ratio=0.4, stop_threshold=0.0)"
        request, swift = new_request(
            lm, method, lm.tokenize("hello"), Settings(max_new_tokens=30, ignore_eos=True, seed=0)
        )
        seen: list[Forward] = []
        with watched(lm.network, seen.append):
            finished(request, swift)
        sequence = seen[-1].sequence
        fresh = lm.network.new_sequence()
        lm.network.run([Forward(fresh, sequence.tokens)])
        for layer in range(6):
            ours, theirs = (s.cache.both(layer)[:, :, : sequence.length] for s in (sequence, fresh))
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)

    def test_a_candidate_sees_the_prompt_and_the_text_s_first_tokens(self):
        """Its scores are those of a fresh sequence of prompt and first tokens, the prompt's rows being the whole model's."""
        lm = toy_language_model(seed=1, layers=6)
        method = "swift(bypass=False, context_window=5, skip_ratio=0.4, max_score=1.0, stop_threshold=0.0)"
        request, swift = new_request(
            lm, method, lm.tokenize("hello there"), Settings(max_new_tokens=24, ignore_eos=True, seed=0)
        )
        asked: list[Forward] = []
        found: list[tuple[int, ...]] = []
        original = lm.network.run_pass

        def spied(forwards):
            answers = original(forwards)
            for forward, scores in zip(forwards, answers, strict=True):
                if forward.slots is Slots.NOWHERE:
                    asked.append(forward)
                    found.append(tuple(scores.logits.argmax(dim=-1).tolist()))
            return answers

        lm.network.run_pass = spied
        try:
            finished(request, swift)
        finally:
            del lm.network.run_pass
        assert len(asked) >= 3
        for forward, tokens in zip(asked, found, strict=True):
            assert list(forward.tokens) == request.new_tokens[:5]
            assert list(forward.positions) == list(range(len(request.prompt), len(request.prompt) + 5))
            sequence = lm.network.new_sequence()
            lm.network.run([Forward(sequence, list(request.prompt))])
            [alone] = lm.network.run([Forward(sequence, request.new_tokens[:5], layers=forward.layers)])
            assert tuple(alone.logits.argmax(dim=-1).tolist()) == tokens


class TestSearch:
    def test_it_starts_when_the_window_is_full_and_takes_one_candidate_a_round(self):
        lm = scripted_language_model(story_scorer())
        spec = "swift(bypass=False, context_window=6, max_score=1.0)"
        lm.generate([1, 2], method=spec, max_new_tokens=7)
        assert _state(lm).search.iterations == 0, "too short to compare six tokens"
        stats = lm.generate([1, 2], method=spec, max_new_tokens=40).stats
        iterations = _state(lm).search.iterations
        assert 0 < iterations < stats.rounds
        lm.forget()
        lm.generate(
            [1, 2], method="swift(bypass=False, context_window=6, max_score=1.0, opt_interval=4)", max_new_tokens=40
        )
        assert 0 < _state(lm).search.iterations <= iterations // 2

    def test_a_session_remembers_greedy_requests_alone(self):
        lm = toy_language_model(seed=1, layers=6)
        spec = "swift(bypass=False, context_window=4, skip_ratio=0.4, max_score=1.0)"
        settings: dict[str, Any] = {"method": spec, "max_new_tokens": 24, "ignore_eos": True}
        lm.generate("hello", temperature=1.0, seed=1, **settings)
        assert not any(isinstance(value, SwiftState) for value in lm.memory.values())
        lm.generate("hello", **settings)
        first = _state(lm).search.iterations
        lm.generate("hello", **settings)
        assert _state(lm).search.iterations > first > 0

    def test_a_sampled_output_does_not_depend_on_what_the_session_found(self):
        lm = toy_language_model(seed=1, layers=6)
        spec = "swift(bypass=False, context_window=4, skip_ratio=0.4, max_score=1.0)"
        settings: dict[str, Any] = {"method": spec, "max_new_tokens": 30, "ignore_eos": True}
        cold = [lm.generate("hello", temperature=1.0, seed=s, **settings).token_ids for s in range(4)]
        for prompt in ("hello", "other", "words"):
            lm.generate(prompt, **settings)
        assert [lm.generate("hello", temperature=1.0, seed=s, **settings).token_ids for s in range(4)] == cold

    def test_a_stored_set_is_used_as_it_is(self, tmp_path):
        lm = toy_language_model(seed=1, layers=6)
        method = stored(tmp_path, lm, (2,), (3,))
        stats = lm.generate("hello", method=method, max_new_tokens=30, ignore_eos=True).stats
        assert set(stats.models) == {"toy-1", "toy-1 (10 of 12 sublayers)"}
        assert _state(lm).search.iterations == 0
        other = toy_language_model(seed=2, layers=6)
        with pytest.raises(MethodUnavailable, match="found for the model"):
            other.generate("hello", method=method, max_new_tokens=4)
        with pytest.raises(MethodUnavailable, match="cannot be used"):
            lm.generate("hello", method=Swift(layer_set=str(tmp_path / "missing.json")), max_new_tokens=4)


class TestTree:
    """What one step of the draft contributes."""

    @pytest.mark.parametrize(
        ("confidence", "greedy", "sampled"), [(0.97, 3, 1), (0.9, 5, 3), (0.6, 8, 5), (0.3, 10, 10)]
    )
    def test_the_bands(self, confidence, greedy, sampled):
        rest = torch.full((15,), (1 - confidence) / 15)
        row = torch.cat([torch.tensor([confidence]), rest]).log()
        for temperature, count in ((0.0, greedy), (1.0, sampled)):
            draft = self._one_step(row, temperature)
            first = draft.tokens[0]
            if first == 0:  # a draw may be another token, with another confidence
                assert len(draft) == count
            assert set(draft.parents) == {ROOT}

    def test_greedy_alternatives_are_the_likeliest(self):
        row = torch.randn(16) * 3
        draft = self._one_step(row, 0.0)
        assert list(draft.tokens) == row.argsort(descending=True)[: len(draft)].tolist()
        assert draft.siblings is Siblings.DETERMINISTIC

    def test_draws_are_without_replacement_and_report_the_processed_law(self):
        row = torch.randn(16)
        draft = self._one_step(row, 0.5, top_p=0.9)
        assert draft.siblings is Siblings.WITHOUT_REPLACEMENT
        assert len(set(draft.tokens)) == len(draft.tokens)
        law = draft.q[ROOT]
        assert float(law.sum()) == pytest.approx(1.0, abs=1e-5)
        assert bool((law == 0).any()), "top-p applies to the draft as well"
        assert all(float(law[token]) > 0 for token in draft.tokens)

    def test_the_confidence_is_that_of_the_raw_law(self):
        """At temperature 0.2 the processed law is sure of anything; the draft stops all the same."""
        row = torch.zeros(16)
        row[3] = 2.0  # 0.33 raw, nearly 1 at temperature 0.2
        for temperature in (0.0, 0.2):
            draft = self._one_step(row, temperature, steps=5, threshold=0.5)
            assert max(draft.depths()) == 1
            assert max(self._one_step(row, temperature, steps=5, threshold=0.3).depths()) == 5

    @staticmethod
    def _one_step(
        row: torch.Tensor, temperature: float, steps: int = 1, threshold: float = 0.0, top_p: float = 1.0
    ) -> Draft:
        from decodery.testing import ScriptedScorer

        lm = scripted_language_model(ScriptedScorer(lambda prefix: row, len(row)))
        spec = f"swift(bypass=False, max_steps={steps}, top_k=10, stop_threshold={threshold}, optimise=False)"
        drafts: list[Draft] = []
        settings = Settings(max_new_tokens=steps + 2, temperature=temperature, top_p=top_p, seed=0)
        request, swift = new_request(lm, spec, [1, 2], settings)
        original = SkippingDrafter.observe

        def observe(self, round):
            drafts.append(round.draft)
            original(self, round)

        SkippingDrafter.observe = observe
        try:
            finished(request, swift)
        finally:
            SkippingDrafter.observe = original
        return next(draft for draft in drafts if len(draft))

    def test_a_higher_threshold_drafts_less_and_is_right_more_often(self):
        """Averaged over several hundred rounds."""
        lengths, rates = [], []
        for threshold in (0.0, 0.3, 0.6):
            lm = scripted_language_model(story_scorer(surprise=1.5))
            spec = f"swift(bypass=False, optimise=False, top_k=1, max_steps=6, stop_threshold={threshold})"
            stats = [lm.generate([i, 2 * i % 24], method=spec, max_new_tokens=100).stats for i in range(18)]
            rounds, drafted = sum(s.rounds for s in stats), sum(s.drafted for s in stats)
            assert rounds >= 500
            lengths.append(drafted / rounds)
            rates.append(sum(s.accepted for s in stats) / drafted)
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[0] > 1.5 * lengths[-1]
        assert rates == sorted(rates)
        assert rates[-1] > rates[0]


class TestPay:
    """It does not draft where that costs time, by the curve of the machine."""

    @staticmethod
    def _stats(
        curve: CostCurve, spec: str = "swift(optimise=False, stop_threshold=0.0)", surprise: float = 0.0, count=80
    ):
        host = type(scripted_language_model(story_scorer()))

        class Priced(host):
            def cost(self, network):
                return curve

        scorer = story_scorer(surprise=surprise)
        lm = Priced(scorer, scripted_language_model(scorer).tokenizer)
        return lm.generate([1, 2], method=spec, max_new_tokens=count).stats

    def test_attention_and_feed_forward_cost_what_they_multiply(self):
        """Two layers of 1 + 3 and a head of 2: ten in all, and one row of the whole takes ten seconds."""
        pay = Pay(CostCurve.flat(10.0), Work(attention=1.0, feed_forward=3.0, head=2.0), 2)
        assert pay.step(LayerSet()) == pytest.approx(10.0)
        assert pay.step(LayerSet(attention=frozenset({0, 1}))) == pytest.approx(8.0)
        assert pay.step(LayerSet(mlp=frozenset({0}))) == pytest.approx(7.0)
        assert pay.step(LayerSet(frozenset({1}), frozenset({1}))) == pytest.approx(6.0)

    @pytest.mark.parametrize(("whole", "step"), [(False, 9.0), (True, 12.0)])
    def test_a_search_may_hope_for_the_dearest_sublayers(self, whole, step):
        """Four layers of 1 + 3, of which the inner two can be spared: three of their sublayers are at most both feed-forwards
        and an attention; of whole layers three quarters of two are one."""
        search = LayerSearch(4, 0.75, whole_layers=whole)
        pay = Pay(CostCurve.flat(16.0), Work(attention=1.0, feed_forward=3.0), 4)
        # Always right, four steps and a pass bring five tokens.
        assert pay.ceiling(search, 4) == pytest.approx(5 * 16 / (16 + 4 * step))
        search.optimising, search.current = False, LayerSet(mlp=frozenset({1}))
        assert pay.ceiling(search, 4) == pytest.approx(5 * 16 / (16 + 4 * 13))

    def test_where_even_right_drafts_cannot_pay_nothing_is_drafted_or_searched(self):
        """Rows that cost as much together as apart: drafting with two thirds of the model only adds work."""
        linear = CostCurve((1, 64), (1.0, 64.0))
        for spec in ("swift(optimise=False)", "swift(context_window=4)"):
            stats = self._stats(linear, spec)
            assert stats.drafted == 0
            assert list(stats.models) == ["story"], "no forward of a draft or of the search"
            assert stats.rounds == 80

    def test_where_it_pays_it_drafts(self):
        stats = self._stats(CostCurve.flat())
        assert stats.acceptance_length > 3

    def test_wrong_drafts_are_given_up(self):
        """The layer set agrees with nothing: after a few rounds only a token now and then is drafted."""
        from decodery.testing import ScriptedScorer

        host = scripted_language_model(
            ScriptedScorer(
                lambda prefix: torch.eye(24)[(3 * prefix[-1] + 1) % 24] * 9,
                24,
                early=lambda prefix: torch.eye(24)[(5 * prefix[-1] + 2) % 24] * 9,
            )
        )
        spec = "swift(optimise=False, top_k=1)"
        stats = host.generate([1, 2], method=spec, max_new_tokens=200).stats
        assert stats.drafted < 40
        always = host.generate([1, 2], method="swift(optimise=False, top_k=1, bypass=False)", max_new_tokens=200).stats
        assert always.drafted > 500
