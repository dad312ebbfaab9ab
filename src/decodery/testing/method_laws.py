"""The laws of methods, as tests to inherit.

    class TestMyMethod(MethodLaws):
        methods = ("my-method", "my-method(width=3)")

A drafter with a verifier inherits `DrafterLaws`. They run on scorers without a network, so that a hundred requests take a
second, and every wrong mask, position or rollback is an error or another text.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, ClassVar, cast

import numpy as np

from decodery.engine.events import Event, Finished, Token
from decodery.engine.method import Method
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.scheduler import Scheduler
from decodery.engine.settings import Settings
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward
from decodery.replies import Reply
from decodery.testing.edges import impossible_tokens
from decodery.testing.goodness import goodness_of_fit, total_variation
from decodery.testing.hosts import scripted_language_model
from decodery.testing.outputs import exact_outputs, finished, new_request, sampled_outputs, watched
from decodery.testing.scorers import TabularScorer, story_scorer

FALSE_ALARM = 1e-6
"""Chance that a sampled law check fails a right method, per check. Seeds are fixed, so a check fails always or never."""
ROUNDING = 1e-5
"""Processed laws are float32."""


class MethodLaws:
    """Inherit, set `methods`, and name the class Test….

    samples: size of the samples by which sampled laws are checked. exact_settings: under which they are enumerated.
    deterministic: the methods refuse a temperature, and are tried without one alone.
    """

    methods: ClassVar[tuple[str | Method, ...]]
    deterministic: ClassVar[bool] = False
    samples: ClassVar[int] = 2000
    exact_settings: ClassVar[tuple[Settings, ...]] = (
        Settings(temperature=1.0, top_p=0.8, max_new_tokens=3, seed=0),
        Settings(temperature=0.7, repetition_penalty=1.5, min_new_tokens=2, max_new_tokens=3, seed=0),
    )

    def host(self) -> LanguageModel:
        """A fresh model with a long story to tell; its greedy output depends on the whole prefix."""
        return scripted_language_model(story_scorer(), drafter=story_scorer(surprise=0.5, name="story draft"))

    def tabular_host(self, vocabulary: int, stop_ids: tuple[int, ...] = ()) -> tuple[LanguageModel, TabularScorer]:
        """A fresh model with an explicit law, which depends on the whole prefix."""
        scorer = TabularScorer(vocabulary, order=None, seed=5)
        return scripted_language_model(scorer, stop_ids=stop_ids, drafter=scorer.blurred()), scorer

    def prompts(self, count: int = 50) -> list[list[int]]:
        """Prompts of different lengths, from one token on."""
        generator = np.random.Generator(np.random.Philox(key=11))
        return [generator.integers(0, 24, 1 + place % 13).tolist() for place in range(count)]

    # What is promised

    def test_greedy_output_is_that_of_plain_decoding(self) -> None:
        """Alone, cold and hot: the second time the method knows what it learned the first time."""
        prompts = self.prompts()
        plain = [self.host().generate(prompt, method="autoregressive", max_new_tokens=24) for prompt in prompts]
        for method in self._lossless():
            lm = self.host()
            for _ in ("cold", "hot"):
                for prompt, expected in zip(prompts, plain, strict=True):
                    reply = lm.generate(prompt, method=method, max_new_tokens=24)
                    assert reply.token_ids == expected.token_ids, _differ(method, prompt, reply, expected)

    def test_sampled_output_is_that_of_plain_decoding_at_the_same_seed(self) -> None:
        """Where the very tokens are promised."""
        settings: dict[str, Any] = {"max_new_tokens": 16, "temperature": 1.0, "top_p": 0.95}
        for method in self.methods:
            if as_method(method).exactness.same_tokens:
                lm, plain = self.host(), self.host()
                for seed, prompt in enumerate(self.prompts(8)):
                    reply = lm.generate(prompt, method=method, seed=seed, **settings)
                    expected = plain.generate(prompt, method="autoregressive", seed=seed, **settings)
                    assert reply.token_ids == expected.token_ids, _differ(method, prompt, reply, expected)

    def test_sampled_law_is_that_of_plain_decoding_exactly(self) -> None:
        """Enumerated through the whole engine, with a stop token in the vocabulary."""
        for method in self._sampling():
            for settings in self.exact_settings:
                lm, scorer = self.tabular_host(3, stop_ids=(2,))
                self.assert_exact(lm, scorer, method, settings, stop_ids=(2,))

    def assert_exact(
        self,
        lm: LanguageModel,
        scorer: TabularScorer,
        method: str | Method,
        settings: Settings,
        stop_ids: tuple[int, ...] = (),
    ) -> None:
        """The output's law under `settings`, enumerated, is the scorer's."""
        law = exact_outputs(lm, method, [0, 1], settings, earlier=([0, 1], [1, 0, 1]))
        expected = scorer.joint([0, 1], settings.max_new_tokens, settings, stop_ids)
        distance = total_variation(law, expected)
        assert distance < ROUNDING, f"{_name(method)}: off the target's law by {distance:.2g} with {settings}"

    def test_sampled_law_is_that_of_plain_decoding_with_real_noise(self) -> None:
        for method in self._sampling():
            settings = Settings(temperature=0.8, top_p=0.9, max_new_tokens=3, seed=1)
            lm, scorer = self.tabular_host(5)
            counts = sampled_outputs(lm, method, [0, 1, 2], settings, self.samples)
            fit = goodness_of_fit(counts, scorer.joint([0, 1, 2], 3, settings))
            assert fit.p_value > FALSE_ALARM, f"{_name(method)}: {fit}"

    def test_what_is_impossible_does_not_happen_at_the_edges_of_the_unit_interval(self) -> None:
        for method in self._sampling():
            impossible, committed = impossible_tokens(method)
            assert impossible == 0, f"{_name(method)}: {impossible} of {committed} tokens have probability 0"

    # Where outputs end

    def test_max_new_tokens(self) -> None:
        for method, lm, prompt, whole in self._runs():
            for count in (1, 2, 3, 7):
                reply = lm.generate(prompt, method=method, max_new_tokens=count)
                assert reply.token_ids == whole.token_ids[:count], _differ(method, prompt, reply, whole)
                assert reply.finish_reason == "length"

    def test_a_stop_token_ends_the_output_wherever_it_comes(self) -> None:
        for method, lm, prompt, whole in self._runs():
            for token in dict.fromkeys(whole.token_ids[:10]):
                reply = lm.generate(prompt, method=method, max_new_tokens=24, stop_token_ids=[token])
                place = whole.token_ids.index(token)
                assert reply.token_ids == whole.token_ids[: place + 1], _differ(method, prompt, reply, whole)
                assert reply.finish_reason == "stop"
                assert reply.text == whole.text[:place], "the stop token is not part of the text"
                assert (
                    lm.generate(
                        prompt, method=method, max_new_tokens=24, stop_token_ids=[token], min_new_tokens=place
                    ).token_ids
                    == reply.token_ids
                ), f"{_name(method)}: min_new_tokens={place} changed what was long enough"

    def test_a_stop_string_ends_the_output_wherever_it_comes(self) -> None:
        for method, lm, prompt, whole in self._runs():
            for place in range(8):
                stop = whole.text[place : place + 3]
                reply = lm.generate(prompt, method=method, max_new_tokens=24, stop=stop)
                assert reply.text == whole.text[: whole.text.index(stop)], f"{_name(method)} with stop={stop!r}"
                assert reply.finish_reason == "stop"

    def test_no_stop_token_before_min_new_tokens(self) -> None:
        for method in self._methods():
            lm = self.host()
            for prompt in self.prompts(8):
                settings: dict[str, Any] = {"stop_token_ids": list(range(8)), "min_new_tokens": 9, "max_new_tokens": 24}
                reply = lm.generate(prompt, method=method, **settings)
                assert all(token >= 8 for token in reply.token_ids[:9]), f"{_name(method)} stopped early"
                if as_method(method).exactness.lossless:
                    plain = lm.generate(prompt, method="autoregressive", **settings)
                    assert reply.token_ids == plain.token_ids, _differ(method, prompt, reply, plain)

    # Alone and in company, at once and bit by bit

    def test_streaming_equals_the_whole(self) -> None:
        for method in self._methods():
            lm = self.host()
            for prompt in self.prompts(6):
                for settings in ({"temperature": self._hot(0.9), "seed": 3}, {"stop": "ab"}):
                    whole = lm.generate(prompt, method=method, max_new_tokens=24, **settings)
                    events = list(lm.stream(prompt, method=method, max_new_tokens=24, **settings))
                    text = "".join(event.text for event in events if isinstance(event, Token | Finished))
                    assert text == whole.text, f"{_name(method)}: streamed {text!r} instead of {whole.text!r}"
                    assert [event.token_id for event in events if isinstance(event, Token)] == whole.token_ids

    def test_it_gives_as_many_texts_as_are_asked_for(self) -> None:
        """Samples, or texts that are decided together: a reply each, and a stream that tells of each what its reply holds."""
        settings: dict[str, Any] = {"n": 3, "temperature": self._hot(1.0), "seed": 5, "max_new_tokens": 8}
        for method in self._methods():
            lm, prompt = self.host(), self.prompts(3)[2]
            replies = lm.generate(prompt, method=method, **settings)
            told = [""] * 3
            for event in self.host().stream(prompt, method=method, **settings):
                if isinstance(event, Token | Finished):
                    assert event.request == event.output
                    told[event.output] += event.text
            assert told == [reply.text for reply in replies], f"{_name(method)}: a text was not told as it is"
            assert [reply.output for reply in replies] == [0, 1, 2]

    def test_packed_equals_alone(self) -> None:
        prompts = self.prompts(12)
        for method in self._methods():
            for temperature in (0.0, self._hot(0.9)):
                settings: dict[str, Any] = {"method": method, "max_new_tokens": 20, "temperature": temperature}
                lm = self.host()
                packed = lm.generate(prompts, seed=list(range(12)), **settings)
                for seed, (prompt, reply) in enumerate(zip(prompts, packed, strict=True)):
                    alone = self.host().generate(prompt, seed=seed, **settings)
                    assert reply.token_ids == alone.token_ids, _differ(method, prompt, reply, alone)

    def test_same_seed_same_output(self) -> None:
        for method in self._methods():
            lm = self.host()
            prompt = self.prompts(5)[4]
            settings: dict[str, Any] = {"method": method, "max_new_tokens": 20, "temperature": self._hot(1.0)}
            first = [lm.generate(prompt, seed=seed, **settings).token_ids for seed in range(6)]
            again = [lm.generate(prompt, seed=seed, **settings).token_ids for seed in range(6)]
            assert first == again, f"{_name(method)}: the same seed gave another output"
            outputs = len({tuple(tokens) for tokens in first})
            assert (outputs == 1) if self.deterministic else (outputs > 1), (
                f"{_name(method)}: all seeds gave the same output"
            )

    def test_cancellation(self) -> None:
        """A request that is cancelled keeps what it has, and leaves its neighbours and its session in order."""
        first, second = self.prompts(9)[7:9]
        for method in self._methods():
            alone = self.host().generate(second, method=method, max_new_tokens=20)
            lm = self.host()
            settings = Settings(max_new_tokens=20, seed=0)
            (one, chosen), (two, _) = (
                new_request(lm, method, first, settings),
                new_request(lm, method, second, settings),
            )
            scheduler = Scheduler()
            scheduler.submit(one, chosen)
            scheduler.submit(two, chosen)
            scheduler.step()
            scheduler.cancel(one)
            scheduler.run()
            assert one.finish_reason == "cancelled"
            assert len(one.new_tokens) < 20
            assert two.new_tokens == alone.token_ids, f"{_name(method)}: cancelling one request changed another"
            with closing(cast("Generator[Event]", lm.stream(second, method=method, max_new_tokens=20))) as stream:
                next(stream)
            assert lm.generate(second, method=method, max_new_tokens=20).token_ids == alone.token_ids

    def test_log_probabilities_are_the_target_s(self) -> None:
        for method in self._lossless():
            lm = self.host()
            for prompt in self.prompts(4):
                settings: dict[str, Any] = {"max_new_tokens": 12, "logprobs": 3, "echo": True}
                plain = lm.generate(prompt, method="autoregressive", **settings)
                reply = lm.generate(prompt, method=method, **settings)
                for ours, theirs in (
                    (reply.logprobs, plain.logprobs),
                    (reply.prompt_logprobs, plain.prompt_logprobs),
                ):
                    assert ours is not None
                    assert theirs is not None
                    assert len(ours) == len(theirs)
                    for left, right in zip(ours, theirs, strict=True):
                        assert abs(left.raw - right.raw) < ROUNDING, f"{_name(method)}: {left} instead of {right}"
                        assert [token for token, _ in left.top] == [token for token, _ in right.top]

    def test_statistics_add_up(self) -> None:
        for method, _, _, reply in self._runs():
            stats = reply.stats
            assert stats.new_tokens == len(reply.token_ids)
            assert stats.accepted + stats.bonus == stats.new_tokens, f"{_name(method)}: {stats}"
            assert stats.accepted <= stats.drafted
            assert 0 < stats.rounds <= stats.forwards
            assert 0 < stats.first_token_seconds <= stats.seconds

    # Which methods a law is for

    def _methods(self) -> Iterator[str | Method]:
        yield from self.methods

    def _hot(self, temperature: float) -> float:
        return 0.0 if self.deterministic else temperature

    def _lossless(self) -> Iterator[str | Method]:
        yield from (method for method in self.methods if as_method(method).exactness.lossless)

    def _sampling(self) -> Iterator[str | Method]:
        for method in self.methods:
            if as_method(method).exactness.same_law:
                yield method

    def _runs(self) -> Iterator[tuple[str | Method, LanguageModel, list[int], Reply]]:
        """Each method on a few prompts, with its own unrestricted output."""
        for method in self.methods:
            lm = self.host()
            for prompt in self.prompts(6):
                yield method, lm, prompt, lm.generate(prompt, method=method, max_new_tokens=24)


class DrafterLaws(MethodLaws):
    """The laws of methods that draft and verify: those of every method, and that the cache follows the text."""

    def test_the_cache_holds_the_committed_tokens(self) -> None:
        """At every forward of the target, the cached tokens are the committed ones, and the rest is fed before the draft."""
        for method in self._methods():
            lm = self.host()
            for seed, prompt in enumerate(self.prompts(20)):
                settings = Settings(max_new_tokens=24, temperature=float(seed % 2), seed=seed)
                request, chosen = new_request(lm, method, prompt, settings)
                with watched(lm.network, _Follower(request, _name(method))):
                    finished(request, chosen)

    def test_no_draft_reaches_beyond_the_last_token(self) -> None:
        for method in self._methods():
            lm = self.host()
            for prompt in self.prompts(10):
                request, chosen = new_request(
                    lm, method, prompt, Settings(max_new_tokens=9, seed=0, stop_token_ids=(3, 4))
                )
                drafted: list[tuple[int, int]] = []
                told = request.drafted

                def drafting(
                    tokens: list[int], parents: list[int], request: Any = request, told: Any = told, seen: Any = drafted
                ) -> None:
                    depths: list[int] = []
                    for parent in parents:
                        depths.append(1 if parent < 0 else depths[parent] + 1)
                        assert parent < 0 or tokens[parent] not in request.stop_ids, "a node follows a stop token"
                    seen.append((max(depths, default=0), request.remaining))
                    told(tokens, parents)

                request.drafted = drafting  # type: ignore[method-assign, assignment]
                finished(request, chosen)
                assert all(depth < remaining for depth, remaining in drafted), f"{_name(method)} drafts too far"


class _Follower:
    """Holds every forward of a request's target against what the request has committed."""

    def __init__(self, request: Request, name: str):
        self._request, self._name = request, name

    def __call__(self, forward: Forward) -> None:
        layers = self._request.host.network.layers
        if forward.layers.start > 0 or not forward.layers.completes(layers):
            return  # a pass through some of the layers is a drafter's
        name, tokens, cached = self._name, self._request.tokens, forward.sequence.length
        text = [*forward.sequence.tokens, *(int(token) for token in forward.tokens)]
        common = min(len(text), len(tokens))
        assert text[:common] == tokens[:common], f"{name}: the cache holds other tokens than the text"
        assert cached < len(tokens), f"{name}: {cached} rows are cached of {len(tokens)} tokens"
        assert forward.sequence.positions == list(range(cached)), f"{name}: positions have gaps"


def _name(method: str | Method) -> str:
    name: str = as_method(method).spec()
    return name


def _differ(method: str | Method, prompt: list[int], reply: Reply, expected: Reply) -> str:
    place = next(
        (i for i, (a, b) in enumerate(zip(reply.token_ids, expected.token_ids, strict=False)) if a != b),
        min(len(reply.token_ids), len(expected.token_ids)),
    )
    return f"{_name(method)} after {prompt}: {reply.token_ids} instead of {expected.token_ids} (they part at token {place})"
