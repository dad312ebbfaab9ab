"""DEL: the laws of every drafter, the two halves of a round, the statistics of the exits, and what they choose."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from decodery.engine.cost import CostCurve
from decodery.engine.events import Drafted
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, MethodUnavailable
from decodery.models.forward import Forward, Rows
from decodery.speculative.del_.drafter import ExitDrafter, Shadows
from decodery.speculative.del_.exit_choice import ExitPrice, ExitStatistics
from decodery.testing import (
    DrafterLaws,
    ScriptedScorer,
    scripted_language_model,
    story_scorer,
    toy_language_model,
    watched,
)
from decodery.testing.outputs import finished, new_request


class TestDel(DrafterLaws):
    methods = ("del", "del(exit=2, length=2)")
    samples = 600


class TestFixedPolicies(DrafterLaws):
    methods = ("del(policy=fixed, exits=1+2, bypass=False)",)
    samples = 600


class TestIdentity:
    """On a network in float32, where a stale row or a wrong position is another score."""

    @pytest.mark.parametrize("exit", [1, 3, 5, 6])
    @pytest.mark.parametrize("length", [1, 2, 5])
    def test_every_fixed_exit_and_length(self, exit, length):
        lm = toy_language_model(seed=1, layers=6)
        for prompt in ("hello", "a b c"):
            plain = lm.generate(prompt, method="autoregressive", max_new_tokens=40)
            reply = lm.generate(prompt, method=f"del(exit={exit}, length={length})", max_new_tokens=40)
            assert reply.token_ids == plain.token_ids
            assert reply.stats.drafted > 0

    @pytest.mark.parametrize("method", ["del", "del(bypass=False)", "del(policy=fixed, bypass=False, cost=layers)"])
    def test_the_dynamic_policies(self, method):
        lm = toy_language_model(seed=1, layers=6)
        prompts = ["hello", "a b c", "no", "tell me more"]
        plain = [lm.generate(p, method="autoregressive", max_new_tokens=40).token_ids for p in prompts]
        assert [lm.generate(p, method=method, max_new_tokens=40).token_ids for p in prompts] == plain
        assert [reply.token_ids for reply in lm.generate(prompts, method=method, max_new_tokens=40)] == plain

    def test_an_exit_drawn_anew_each_round(self, monkeypatch):
        """A row of an earlier, deeper or shallower exit must never be read."""
        lm = toy_language_model(seed=1, layers=6)
        generator = np.random.Generator(np.random.Philox(key=1))
        used: set[int] = set()
        original = ExitDrafter.observe

        def observe(self, round):
            original(self, round)
            self.chosen = int(generator.integers(1, 6)), int(generator.integers(0, 5))
            used.add(self.chosen[0])

        monkeypatch.setattr(ExitDrafter, "observe", observe)
        for prompt in ("hello", "a b c", "no"):
            plain = lm.generate(prompt, method="autoregressive", max_new_tokens=60, ignore_eos=True)
            reply = lm.generate(prompt, method="del(policy=fixed)", max_new_tokens=60, ignore_eos=True)
            assert reply.token_ids == plain.token_ids
        assert used == {1, 2, 3, 4, 5}

    def test_sampled_law_on_a_network(self):
        """Three tokens of a tiny random Llama: chi-square against the law of its own scores."""
        from decodery.sampling.law import Law
        from decodery.testing import goodness_of_fit
        from decodery.testing.outputs import sampled_outputs

        lm = toy_language_model(seed=3, layers=3)
        settings = Settings(temperature=0.6, top_k=3, top_p=0.95, max_new_tokens=3, seed=5, ignore_eos=True)
        prompt = lm.tokenize("hey")
        law = Law(settings, prompt)
        joint: dict[tuple[int, ...], float] = {(): 1.0}
        for _ in range(3):
            grown = {}
            for path, mass in joint.items():
                [scores] = lm.network.run([Forward(lm.network.new_sequence(), [*prompt, *path], logits=Rows.LAST)])
                chances = law.log_probabilities(scores.logits[0], path).exp()
                for token in chances.nonzero()[:, 0].tolist():
                    grown[(*path, token)] = mass * float(chances[token])
            joint = grown
        for method in ("del(exit=1, length=2)", "del(bypass=False)", "swift(bypass=False, stop_threshold=0.0)"):
            counts = sampled_outputs(lm, method, prompt, settings, 700)
            assert goodness_of_fit(counts, joint).p_value > 1e-3, method


class TestRound:
    @pytest.mark.parametrize("exit", [1, 3, 5])
    def test_the_two_halves_have_the_scores_of_a_whole_pass(self, exit, monkeypatch):
        """At all positions of every round, and every layer's keys and values are those of a fresh pass."""
        lm = toy_language_model(seed=1, layers=6)
        rows: list[tuple[list[int], torch.Tensor]] = []
        original = ExitDrafter.observe

        def observe(self, round):
            original(self, round)
            rows.append(([*round.tokens, *round.draft.tokens], round.logits))

        monkeypatch.setattr(ExitDrafter, "observe", observe)
        seen: list[Forward] = []
        with watched(lm.network, seen.append):
            lm.generate("hello", method=f"del(exit={exit}, length=4)", max_new_tokens=20, ignore_eos=True)
        assert len(rows) > 3
        for text, logits in rows:
            [whole] = lm.network.run([Forward(lm.network.new_sequence(), text)])
            torch.testing.assert_close(logits, whole.logits[-len(logits) :], atol=1e-4, rtol=0)
        sequence, fresh = seen[-1].sequence, lm.network.new_sequence()
        lm.network.run([Forward(fresh, sequence.tokens)])
        for layer in range(6):
            ours, theirs = (s.cache.both(layer)[:, :, : sequence.length] for s in (sequence, fresh))
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)

    def test_the_work_of_a_round(self):
        """Each row goes through each layer once: no layer runs twice, and none is left out."""
        lm = toy_language_model(seed=1, layers=6)
        stats = lm.generate("hello", method="del(exit=2, length=3)", max_new_tokens=30, ignore_eos=True).stats
        lower, upper = stats.models["toy-1 (2 of 6 layers)"], stats.models["toy-1"]
        assert upper.forwards == stats.rounds
        assert lower.rows + (upper.layer_rows - 4 * upper.rows) // 2 == upper.rows
        assert stats.models["toy-1 (exit head)"].rows == stats.drafted, "a fixed policy looks at no other exit"

    @pytest.mark.parametrize("length", [1, 3])
    def test_all_layers_are_always_right(self, length):
        lm = toy_language_model(seed=1, layers=4)
        stats = lm.generate("hello", method=f"del(exit=4, length={length})", max_new_tokens=24, ignore_eos=True).stats
        assert stats.accepted == stats.drafted
        assert stats.rounds == -(-24 // (length + 1))

    def test_what_cannot_work_is_refused(self, tmp_path):
        lm = toy_language_model(seed=1, layers=3)
        for spec, error, reason in (
            ("del(exit=4)", MethodUnavailable, "3 layers"),
            ("del(exits=1+3)", MethodUnavailable, "1 to 2"),
            ("del(exits=one)", BadParameter, "written as"),
            (f"del(adapters={tmp_path})", MethodUnavailable, "no exit adapters"),
        ):
            with pytest.raises(error, match=reason):
                lm.generate("a", method=spec, max_new_tokens=2)


class TestShadows:
    def test_what_an_exit_would_have_drafted_is_what_it_drafts(self):
        """The claim of the paper: its match rate among shadow tokens is the acceptance rate of drafting with it.

        On many short texts: a long one of a tiny network runs in circles.
        """
        lm = toy_language_model(seed=1, layers=3)
        settings = Settings(max_new_tokens=40, ignore_eos=True, seed=0)
        generator = np.random.Generator(np.random.Philox(key=2))
        prompts = [generator.integers(32, 127, 4).tolist() for _ in range(28)]
        counts = torch.zeros(2, 2)
        for prompt in prompts:
            spec = "del(policy=fixed, bypass=False, max_draft=1, cost=layers, omega=1.0, context=0)"
            request, method = new_request(lm, spec, prompt, settings)
            drafter = method.drafter(request)
            object.__setattr__(method, "drafter", lambda request, drafter=drafter: drafter)
            finished(request, method)
            counts += drafter.statistics.counts
        for exit, (right, wrong) in zip((1, 2), counts.tolist(), strict=True):
            assert right + wrong >= 1000
            rate = right / (right + wrong)
            assert 0.1 < rate < 0.9, "the test needs exits that are right now and then"
            runs = [finished(*new_request(lm, f"del(exit={exit}, length=1)", p, settings)).statistics for p in prompts]
            drafted = sum(stats.drafted for stats in runs)
            real = sum(stats.accepted for stats in runs) / drafted
            error = math.sqrt(rate * (1 - rate) / (right + wrong) + real * (1 - real) / drafted)
            assert abs(rate - real) <= 3 * error, f"exit {exit}: {rate} against {real}"

    def test_statistics_of_a_round(self):
        statistics = ExitStatistics((2, 5), omega=0.5)
        assert all(math.isnan(rate) for rate in statistics.rates())
        assert math.isnan(statistics.threshold(2))
        match = torch.tensor([[True, False, True], [True, True, True]])
        sure = torch.tensor([[0.9, 0.2, 0.7], [0.5, 0.6, 0.7]])
        statistics.update(match, sure)
        assert statistics.counts.tolist() == [[2, 1], [3, 0]]
        torch.testing.assert_close(statistics.confidences, torch.tensor([[1.6, 0.2], [1.8, 0.0]]))
        assert statistics.rates() == pytest.approx([2 / 3, 1.0])
        assert statistics.threshold(2) == pytest.approx((0.8 + 0.2) / 2)
        assert math.isnan(statistics.threshold(5)), "it was never wrong"
        statistics.update(torch.tensor([[False], [True]]), torch.tensor([[0.4], [0.8]]))
        assert statistics.counts.tolist() == [[1, 1.5], [2.5, 0]]
        torch.testing.assert_close(statistics.confidences, torch.tensor([[0.8, 0.5], [1.7, 0.0]]))

    def test_equal_tokens_per_layer_go_to_the_smallest_exit_and_length(self):
        statistics = ExitStatistics((2, 5), omega=1.0)
        assert statistics.select(lambda exit, length: 1.0, (1, 2)) == (2, 1), "nothing was seen yet"
        statistics.update(torch.tensor([[True, False], [True, False]]), torch.full((2, 2), 0.5))
        assert statistics.select(lambda exit, length: 1.0, (1, 2, 3)) == (2, 3), "more tokens at the same price"
        expected = {0: 1.0, 1: 1.5, 2: 1.75, 3: 1.875}
        assert statistics.select(lambda exit, length: expected[length], (1, 2, 3)) == (2, 1)
        assert statistics.select(lambda exit, length: expected[length], (0, 3)) == (2, 0)
        assert statistics.select(lambda exit, length: expected[length] / exit, (2, 3)) == (5, 2)

    @pytest.mark.parametrize(("clip", "counted"), [(True, 2), (False, 4)])
    def test_positions_after_a_refused_token_do_not_count(self, clip, counted):
        """Three tokens are drafted and the second is refused: positions 0 and 1 have the text's own context."""
        drafter = self._observed(f"del(clip={clip}, exits=1+2)", accepted=1, before=0)
        assert drafter.statistics.counts.sum(dim=1).tolist() == [counted, counted]

    def test_prompt_positions_count_whole(self):
        drafter = self._observed("del(exits=1+2)", accepted=0, before=5)
        assert drafter.statistics.counts.sum(dim=1).tolist() == [6, 6]

    @staticmethod
    def _observed(spec: str, accepted: int, before: int) -> ExitDrafter:
        from decodery.speculative.draft import chain
        from decodery.speculative.loop import Round
        from decodery.speculative.verifiers import Verdict

        lm = scripted_language_model(story_scorer())
        request, method = new_request(lm, spec, [1, 2], Settings(max_new_tokens=9, seed=0))
        drafter = method.drafter(request)
        ones = torch.ones(2, before + 4)
        drafter.shadows = Shadows(ones.bool(), ones / 2, before)
        draft = chain([3, 4, 5])
        drafter.observe(Round([1, 2], draft, Verdict(tuple(range(accepted)), 7), [7], torch.zeros(4, 24), {}))
        return drafter

    @pytest.mark.parametrize(("prompt", "context", "expected"), [(40, 32, 33), (40, 4, 5), (10, 32, 10), (1, 32, 1)])
    def test_the_last_positions_of_the_prompt_count_in_the_first_round(self, prompt, context, expected):
        """Against the target's prediction; one more is the last prompt token's own, and one that of the drafted token."""
        lm = scripted_language_model(story_scorer())
        tokens = list(range(prompt))
        request, method = new_request(
            lm,
            f"del(context={context}, omega=1.0, clip=False)",
            [t % 24 for t in tokens],
            Settings(max_new_tokens=2, seed=0),
        )
        drafter = method.drafter(request)
        object.__setattr__(method, "drafter", lambda request: drafter)
        finished(request, method)
        found = drafter.statistics.counts.sum(dim=1).tolist()
        # The first round drafts one token; a second round follows where it was refused.
        assert set(found) <= {expected + 1.0, expected + 2.0}


class TestChoice:
    def test_tokens_per_layer_by_hand(self):
        """TPL(l, d) = (1 - a^(d+1)) / (1 - a) / (d l + L), section 3 of the paper."""
        statistics = self._with_rates({2: 0.5, 8: 0.9})
        table = {
            (exit, d): (1 - a ** (d + 1)) / (1 - a) / (d * exit + 16)
            for exit, a in ((2, 0.5), (8, 0.9))
            for d in range(18)
        }
        assert statistics.select(ExitPrice(16), range(18)) == max(table, key=lambda entry: table[entry])
        for exit, rate in ((2, 0.5), (8, 0.9)):
            for length in range(18):
                assert ExitPrice(16)(exit, length) == length * exit + 16
                expected = sum(rate**i for i in range(length + 1))
                assert expected / ExitPrice(16)(exit, length) == pytest.approx(table[exit, length])

    @staticmethod
    def _with_rates(rates: dict[int, float], weight: float = 1000) -> ExitStatistics:
        statistics = ExitStatistics(tuple(rates), 1.0)
        for place, rate in enumerate(rates.values()):
            statistics.counts[place] = torch.tensor([rate * weight, (1 - rate) * weight])
        return statistics

    def test_ties_and_what_was_never_seen(self):
        assert self._with_rates({2: 0.0, 8: 0.0}).select(ExitPrice(16), range(18)) == (2, 0)
        assert self._with_rates({2: 1.0, 8: 1.0}).select(ExitPrice(16), range(18)) == (2, 17)
        assert ExitStatistics((3, 8), 0.9).select(ExitPrice(16), range(18)) == (3, 1)
        half = self._with_rates({2: 0.5, 8: 0.5})
        half.counts[0] = 0
        assert half.select(ExitPrice(16), range(18))[0] == 8

    def test_the_price_of_heads_and_rows(self):
        """The card's numbers for 135M parameters: a draft of one gains 7% at exit 5 and loses at exits 10 and 20."""
        price = ExitPrice(30, draft_head=1.33, full_head=8.0)
        assert price(5, 0) == 38
        for exit, rate, gain in ((5, 0.254, 1.075), (10, 0.283, 0.99), (20, 0.385, 0.89)):
            found = (1 + rate) * 38 / price(exit, 1)
            assert found == pytest.approx(gain, abs=0.01)
        dear = ExitPrice(30, 1.33, 8.0, exits=5, curve=CostCurve((1, 64), (1.0, 64.0)))
        assert dear(5, 2) == pytest.approx(1.1 * (2 * 6.33 + 5 + 33 * 3 + 1.33 * 15))
        assert dear(5, 0) == pytest.approx(38 + 1.33 * 5 / 8)

    @pytest.mark.parametrize(("linear", "drafts"), [(True, False), (False, True)])
    def test_it_drafts_only_where_that_pays(self, linear, drafts):
        """By the curve of the machine: rows that cost as much together as apart leave nothing to gain from any draft."""
        host = type(scripted_language_model(story_scorer()))
        curve = CostCurve((1, 64), (1.0, 64.0)) if linear else CostCurve.flat()

        class Priced(host):
            def cost(self, network):
                return curve

        scorer = story_scorer()
        lm = Priced(scorer, scripted_language_model(scorer).tokenizer)
        for policy in ("threshold", "fixed"):
            stats = lm.generate([1, 2], method=f"del(policy={policy})", max_new_tokens=80).stats
            if drafts:
                assert stats.acceptance_length > 2
            else:
                assert stats.drafted <= 3, "the first round drafts once, to look"
                head = stats.models["story (exit head)"].forwards
                assert head < 80 / 8 + 4, "plain rounds look at the exits now and then"
        assert lm.generate([1, 2], method="del(bypass=False, policy=fixed)", max_new_tokens=80).stats.drafted > 20


class TestSwitchingText:
    """Two phases: one in which only the shallow exit is worth its layers, and one in which only the deep exit is."""

    LAYERS, SHALLOW, DEEP = 16, 2, 8
    RATES = ({2: 0.7, 8: 0.75}, {2: 0.05, 8: 0.97})

    def _stream(self, seed: int, rounds: int = 1500) -> list[torch.Tensor]:
        """Per token of the text: whether each exit would be right, [2] bool."""
        generator = np.random.Generator(np.random.Philox(key=seed))
        return [
            torch.from_numpy(generator.random(2) < np.array([*rates.values()]))
            for rates in self.RATES
            for _ in range(rounds)
        ]

    def _tokens_per_layer(self, stream, choose, statistics=None) -> float:
        """Decode the stream: a round commits the right tokens of its draft and one more."""
        place, tokens, layers = 0, 0, 0.0
        while place < len(stream) - 20:
            exit, length = choose()
            column = 0 if exit == self.SHALLOW else 1
            right = 0
            while right < length and bool(stream[place + right][column]):
                right += 1
            if statistics is not None:
                seen = torch.stack(stream[place : place + min(right, length) + 1], dim=1)
                statistics.update(seen, torch.full(seen.shape, 0.5))
            place += right + 1
            tokens += right + 1
            layers += length * exit + self.LAYERS
        return tokens / layers

    def _dynamic(self, stream, omega: float) -> float:
        statistics = ExitStatistics((self.SHALLOW, self.DEEP), omega)
        return self._tokens_per_layer(stream, lambda: statistics.select(ExitPrice(self.LAYERS), range(18)), statistics)

    def test_it_beats_every_fixed_choice(self):
        for seed in range(2):
            stream = self._stream(seed)
            fixed = {
                (exit, length): self._tokens_per_layer(stream, lambda pair=(exit, length): pair)
                for exit in (self.SHALLOW, self.DEEP)
                for length in range(12)
            }
            dynamic = self._dynamic(stream, 0.95)
            assert dynamic > max(fixed.values())
            # Within each phase it is as good as the best choice for that phase, but for 5%.
            for phase in (stream[:1500], stream[1500:]):
                best = max(
                    self._tokens_per_layer(phase, lambda pair=(exit, length): pair)
                    for exit in (self.SHALLOW, self.DEEP)
                    for length in range(18)
                )
                assert self._dynamic(phase, 0.95) > 0.95 * best

    def test_without_decay_it_is_slow_to_follow(self):
        streams = [self._stream(seed) for seed in range(2)]
        decayed, whole = (np.mean([self._dynamic(stream, omega) for stream in streams]) for omega in (0.95, 1.0))
        assert decayed > 1.02 * whole


class TestAblations:
    def test_without_clipping_an_exit_looks_worse_than_it_is(self):
        """The exit is right on 7 of 10 tokens of the text. Behind a wrong token, where the text never goes, it never is."""

        def right(prefix: tuple[int, ...]) -> int:
            return (7 * len(prefix) + 3) % 24

        def on_text(prefix: tuple[int, ...]) -> bool:
            return all(token == right(prefix[:place]) for place, token in enumerate(prefix) if place >= 2)

        def script(prefix):
            return torch.eye(24)[right(prefix)] * 9

        def early(prefix):
            return torch.eye(24)[right(prefix) if on_text(prefix) and len(prefix) % 10 < 7 else 0] * 9

        rates = {}
        for clip in (True, False):
            lm = scripted_language_model(ScriptedScorer(script, 24, early=early))
            spec = f"del(clip={clip}, omega=1.0, length=5, exits=1, context=0)"
            request, method = new_request(lm, spec, [1, 2], Settings(max_new_tokens=300, seed=0))
            drafter = method.drafter(request)
            object.__setattr__(method, "drafter", lambda request, drafter=drafter: drafter)
            finished(request, method)
            [rates[clip]] = drafter.statistics.rates()
        assert rates[True] == pytest.approx(0.7, abs=0.05)
        assert rates[False] < 0.55

    def test_the_threshold_ends_drafts_that_fail(self):
        """With it off, drafts run to their bound and more of them is refused."""
        lm = scripted_language_model(story_scorer(surprise=1.5))
        settings: dict[str, Any] = {"max_new_tokens": 200}
        on = lm.generate([1, 2], method="del(bypass=False, max_draft=8)", **settings).stats
        off = lm.generate([1, 2], method="del(length=8, exit=1)", **settings).stats
        assert on.accepted / on.drafted > 1.2 * off.accepted / off.drafted

    @pytest.mark.parametrize(("threshold", "longest"), [(0.25, 6), (0.35, 1)])
    def test_the_threshold_is_for_the_exits_raw_law(self, threshold, longest, monkeypatch):
        """An exit gives its likeliest token 0.3, at any temperature. At a low one the processed law is all but certain."""
        monkeypatch.setattr(ExitStatistics, "threshold", lambda self, exit: threshold)

        def early(prefix):
            row = torch.full((24,), 0.7 / 23)
            row[len(prefix) % 24] = 0.3
            return row.log()

        lm = scripted_language_model(
            ScriptedScorer(lambda prefix: torch.eye(24)[len(prefix) % 24] * 9, 24, early=early)
        )
        for temperature in (0.0, 0.05):
            events = lm.generate(
                [1, 2],
                method="del(bypass=False, exits=1, max_draft=6)",
                max_new_tokens=60,
                temperature=temperature,
                seed=0,
            ).events
            assert max(len(event.tokens) for event in events if isinstance(event, Drafted)) == longest
