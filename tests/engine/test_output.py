"""Outputs of a request: forks go on by themselves, tries tell nothing, and what is concluded tells all, once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decodery.engine.events import Drafted, Event, Finished, Token, Unmasked
from decodery.engine.output import Output
from decodery.engine.request import Request
from decodery.engine.settings import Settings
from decodery.sampling.noise import Stage
from decodery.testing import ByteTokenizer, ScriptedScorer, SmallLanguageModel

SIZE = 260
END = 256
PROMPT = list(b"Say: ")
TOKENS = st.lists(st.sampled_from([*"abEü🙂".encode(), END, 257]), max_size=14)
STOPS: dict[str, Any] = {"stop": ["bE", "aab", "<|user|>a"], "max_new_tokens": 9, "min_new_tokens": 2}


def make_request(n: int = 1, number: int = 3, **settings: Any) -> Request:
    scorer = ScriptedScorer(lambda prefix: torch.zeros(SIZE), SIZE)
    lm = SmallLanguageModel(scorer, ByteTokenizer(), [END])
    return Request(lm, PROMPT, Settings.of({**settings, "n": n}, SIZE), number, together=n > 1)


def rows(tokens: Sequence[int]) -> Tensor:
    return torch.randn(len(tokens), SIZE, generator=torch.Generator().manual_seed(len(tokens)))


def state(output: Output) -> tuple[Any, ...]:
    return output.new_tokens, output.text, output.finish_reason, output.remaining, output.logprobs


def committed(tokens: Sequence[int], **settings: Any) -> Output:
    output = make_request(**settings).output
    output.commit(tokens, rows(tokens))
    return output


def told(events: Sequence[Event], output: int) -> str:
    return "".join(e.text for e in events if isinstance(e, Token | Finished) and e.output == output)


# Forks


@given(TOKENS, TOKENS, TOKENS)
def test_a_fork_goes_on_as_if_it_were_alone(before: list[int], mine: list[int], other: list[int]) -> None:
    """Wherever a text is forked, within a character or a stop string too, both go on as one that was never forked."""
    output = make_request(2, **STOPS).output
    output.commit(before, rows(before))
    twin = output.fork()
    output.commit(mine, rows(mine))
    twin.commit(other, rows(other))
    assert state(output)[:4] == state(committed([*before, *mine], **STOPS))[:4]
    assert state(twin)[:4] == state(committed([*before, *other], **STOPS))[:4]


@given(TOKENS, TOKENS, st.booleans())
def test_would_stop_tells_what_commit_does_and_does_nothing(before: list[int], then: list[int], fork: bool) -> None:
    output = make_request(**STOPS, logprobs=1).output
    output.commit(before, rows(before))
    output = output.fork() if fork else output
    events, was = list(output.request.events), state(output)
    would = output.would_stop(then)
    assert (state(output), output.request.events) == (was, events)
    assert would == output.commit(then, rows(then))


def test_would_stop_asks_stopping_criteria() -> None:
    output = make_request(stopping_criteria=[lambda ids, scores: bool(ids[0, -1] == 0x62)]).output
    assert output.would_stop(list(b"ab"), rows(b"ab"))
    assert not output.would_stop(list(b"aa"), rows(b"aa"))
    assert output.new_tokens == []


@given(st.lists(st.integers(0, 20), max_size=8), st.lists(st.integers(0, 20), max_size=8))
def test_penalties_count_per_output(mine: list[int], other: list[int]) -> None:
    settings = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25, "temperature": 0.8}
    request = make_request(2, **settings)
    first, second = request.output.fork(), request.output.fork()
    first.commit(mine, rows(mine))
    second.commit(other, rows(other))
    row = rows([0])[0]
    for output, tokens in ((first, mine), (second, other)):
        alone = committed(tokens, **settings).law.log_probabilities(row)
        assert torch.equal(output.law.log_probabilities(row), alone)


def test_draws_of_outputs_at_one_place_have_addresses_of_their_own() -> None:
    request = make_request(2, temperature=1.0, seed=4)
    row = torch.zeros(SIZE)
    outputs = [request.output.fork() for _ in range(40)]
    assert len({output.draw(row) for output in outputs}) == 1
    assert len({output.draw(row, index=place) for place, output in enumerate(outputs)}) > 30


@pytest.mark.parametrize("source", ["addressed", "gumbel", "arithmetic", "keyed"])
def test_a_draw_is_the_choice_of_its_chance_among_all_tokens(source: str) -> None:
    """Also where the law leaves few, and only these are looked at."""
    for seed in range(30):
        output = make_request(temperature=0.9, top_p=0.8, chance=source, seed=seed).output
        row = torch.randn(5000, generator=torch.Generator().manual_seed(seed)) * 4
        chosen = output.noise.fork(output.tokens).choose(output.law.probabilities(row), output.position, Stage.TARGET)
        assert output.draw(row) == chosen


# What is told


def test_tries_tell_nothing_and_what_is_concluded_tells_all_in_order() -> None:
    heard: list[Event] = []
    request = make_request(2, max_new_tokens=4)
    request._listener = heard.append
    kept, lost, late = (request.output.fork() for _ in range(3))
    kept.drafted([97, 98], [-1, 0])
    kept.commit(list(b"ab"), (), accepted=2, rounds=1)
    lost.commit(list(b"xyzw"), ())
    late.commit(list(b"q"), (), rounds=1)
    kept.commit([END], (), rounds=1)
    assert heard == []
    assert request.finish_reason is None
    late.score = -2.5
    request.conclude([(kept, 0.75), (late, 0.25)])
    assert heard == request.events
    assert [type(event) for event in heard] == [Drafted, Token, Token, Token, Finished, Token, Finished]
    assert [(event.request, event.output) for event in heard] == [(3, 0)] * 5 + [(4, 1)] * 2
    assert [(output.text, output.finish_reason) for output in request.outputs] == [("ab", "stop"), ("q", "length")]
    assert (told(heard, 0), told(heard, 1)) == ("ab", "q")
    assert [(output.weight, output.score) for output in request.outputs] == [(0.75, None), (0.25, -2.5)]
    assert (request.finish_reason, request.text) == ("stop", "ab")
    counted = request.statistics
    assert (counted.new_tokens, counted.accepted, counted.bonus, counted.rounds) == (4, 2, 2, 3)
    request.conclude([(lost, 1.0), (kept, 0.0)])  # it is over: nothing happens
    assert len(request.events) == 7


def test_outputs_that_are_shown_tell_as_they_go_and_end_the_request_with_the_last() -> None:
    request = make_request(2, max_new_tokens=2)
    outputs = [request.output.fork(), request.output.fork()]
    for output in outputs:
        request.show(output)
    outputs[1].commit([0x61], ())
    outputs[0].commit([0x62], ())
    outputs[1].commit([0x63], ())
    assert request.finish_reason is None
    outputs[0].commit([END], ())
    assert request.finish_reason == "stop"
    assert [(e.output, e.text) for e in request.events if isinstance(e, Token)] == [
        (1, "a"),
        (0, "b"),
        (1, "c"),
        (0, ""),
    ]


def test_a_canvas_that_was_tried_is_told_as_the_one_output() -> None:
    """As votes among canvases end: a fork takes the place of the output that is shown, which has told nothing."""
    request = make_request()
    tries = [request.output.fork() for _ in range(3)]
    for place, attempt in enumerate(tries):
        attempt.open_canvas(3)
        attempt.unmasked(0, [1], [0x62])
        attempt.unmasked(1, [0], [0x61 + place])
        attempt.block_ends.append(2)
        attempt.commit([0x61 + place, 0x62], ())
    request.conclude([(tries[2], 0.5)])
    assert (request.text, request.finish_reason, request.statistics.step_of) == ("cb", "length", [1, 0, -1])
    assert request.statistics.block_ends == [2]
    assert [event.step for event in request.events if isinstance(event, Unmasked)] == [0, 1]
    assert request.statistics.new_tokens == 2


@pytest.mark.parametrize("case", ["too few", "twice", "no weight", "not forked", "not since", "of another"])
def test_what_cannot_be_concluded(case: str) -> None:
    request = make_request(2 if case in ("too few", "twice", "no weight", "of another") else 1)
    first, second = request.output.fork(), request.output.fork()
    if case == "not forked":
        request.commit([0x61], ())
        first.commit([0x62], ())
    if case == "not since":
        request.commit([0x61], ())
        first = request.output.fork()
        request.commit([0x61], ())
    if case == "of another":
        request.show(second)
        second.commit([0x61], ())
    given = {
        "too few": [(first, 1.0)],
        "twice": [(first, 1.0), (first, 1.0)],
        "no weight": [(first, 1.0), (second, float("nan"))],
        "of another": [(first, 1.0), (request.output.fork(), 1.0)],
    }.get(case, [(first, 1.0)])
    with pytest.raises(ValueError, match=r"asked for|weights|go on from it"):
        request.conclude(given)
    assert request.finish_reason is None


@pytest.mark.parametrize("shown", [0, 1])
def test_a_request_that_ends_early_gives_its_outputs_all_the_same(shown: int) -> None:
    request = make_request(3)
    for _ in range(shown):
        request.show(request.output.fork())
        request.outputs[0].commit([0x61], ())
    request.finish("error", KeyError("lost"))
    assert [output.finish_reason for output in request.outputs] == ["error"] * 3
    assert [output.text for output in request.outputs] == ["a" * shown, "", ""]
    assert [event.request for event in request.events if isinstance(event, Finished)] == [3, 4, 5]
    assert isinstance(request.error, KeyError)
