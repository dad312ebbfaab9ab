"""Requests that fail or are cancelled: alone, with their own error, and with the others' results as they should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scripted_requests import Scripted, new_request, run
from tiny_models import network_of, random_ids

from decodery.engine.events import Finished
from decodery.engine.method import Decoding, Method
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.scheduler import Scheduler
from decodery.models.forward import Forward
from decodery.testing import (
    LetterTokenizer,
    ScriptedScorer,
    SmallLanguageModel,
    scripted_language_model,
    story_scorer,
)

# Failures


class Trouble(Exception):
    pass


def raises_at_once(request: Request) -> Decoding:
    raise Trouble("at once")
    yield


def raises_when_called(request: Request) -> Decoding:
    raise Trouble("when called")


def raises_later(request: Request) -> Decoding:
    sequence = request.new_sequence()
    scores = yield Forward(sequence, request.prompt)
    request.commit([3], scores.logits[-1:])
    yield Forward(sequence, [3])
    raise Trouble("later")


def malformed(request: Request) -> Decoding:
    sequence = request.new_sequence()
    yield Forward(sequence, request.prompt)
    yield Forward(sequence, [request.host.network.vocabulary])


def one_of_two_malformed(request: Request) -> Decoding:
    yield (Forward(request.new_sequence(), [1]), Forward(request.new_sequence(), [2], [3, 4]))


def no_forward(request: Request) -> Decoding:
    yield None  # type: ignore[misc]


def dies_badly(request: Request) -> Decoding:
    sequence = request.new_sequence()
    try:
        yield Forward(sequence, request.prompt)
        yield Forward(sequence, [-1])
    finally:
        raise Trouble("in the last words")


@pytest.mark.parametrize(
    ("decode", "kind", "message"),
    [
        (raises_at_once, Trouble, "at once"),
        (raises_when_called, Trouble, "when called"),
        (raises_later, Trouble, "later"),
        (malformed, ValueError, "token ids"),
        (one_of_two_malformed, ValueError, "positions"),
        (no_forward, TypeError, ""),
        (dies_badly, Exception, ""),
    ],
)
def test_a_failing_request_fails_alone(decode: Any, kind: type[Exception], message: str) -> None:
    lm = scripted_language_model(story_scorer())
    before, after = new_request(lm, [1, 2], 0), new_request(lm, [4], 2, temperature=1.0, seed=1)
    bad = new_request(lm, [3], 1)
    run((before, "autoregressive"), (bad, Scripted(decode)), (after, "token-recycling"))
    assert isinstance(bad.error, kind)
    assert message in str(bad.error)
    assert bad.finish_reason == "error"
    assert len([e for e in bad.events if isinstance(e, Finished)]) == 1
    for request, method, prompt, settings in (
        (before, "autoregressive", [1, 2], {}),
        (after, "token-recycling", [4], {"temperature": 1.0, "seed": 1}),
    ):
        alone = new_request(lm, prompt, **settings)
        run((alone, method))
        assert request.error is None
        assert request.new_tokens == alone.new_tokens


def breaks_the_pass(request: Request) -> Decoding:
    """Well formed, but the network cannot score it: there is no such position."""
    sequence = request.new_sequence()
    yield Forward(sequence, request.prompt)
    yield Forward(sequence, [5], positions=[10**6])


def test_a_forward_that_breaks_the_pass_fails_alone() -> None:
    network = network_of("gpt2", "eager")
    lm = SmallLanguageModel(network, LetterTokenizer(network.vocabulary))

    def others() -> list[Request]:
        return [new_request(lm, random_ids(4 + i, i), i) for i in range(3)]

    alone = others()
    for request in alone:
        run((request, "autoregressive"))
    for place in range(4):
        requests, bad = others(), new_request(lm, [1])
        pairs: list[tuple[Request, Method | str]] = [(request, "autoregressive") for request in requests]
        pairs.insert(place, (bad, Scripted(breaks_the_pass)))
        run(*pairs)
        assert isinstance(bad.error, IndexError)
        for one, other in zip(requests, alone, strict=True):
            assert one.error is None
            assert one.new_tokens == other.new_tokens
            # Scoring again after the broken pass is not counted twice.
            assert one.statistics.rows == other.statistics.rows


def test_a_tuple_of_which_one_breaks_fails_its_request_once() -> None:
    def script(prefix: tuple[int, ...]) -> torch.Tensor:
        if 9 in prefix:
            raise Trouble("token 9")
        return torch.arange(10.0)

    lm = scripted_language_model(ScriptedScorer(script, 10))

    def decode(request: Request) -> Decoding:
        yield (
            Forward(request.new_sequence(), [9]),
            Forward(request.new_sequence(), [1]),
            Forward(request.new_sequence(), [9]),
        )

    bad, good = new_request(lm, [1]), new_request(lm, [2], max_new_tokens=1)
    run((bad, Scripted(decode)), (good, "autoregressive"))
    assert isinstance(bad.error, Trouble)
    assert len([e for e in bad.events if isinstance(e, Finished)]) == 1
    assert good.error is None
    assert good.new_tokens == [9]


# Cancelling


def test_a_cancelled_request_keeps_what_it_has_and_the_others_go_on() -> None:
    lm = scripted_language_model(story_scorer())
    closed = []

    def decode(request: Request) -> Decoding:
        try:
            yield from as_method("autoregressive").decode(request)
        finally:
            closed.append(request)

    requests = [new_request(lm, [place + 1], place) for place in range(3)]
    scheduler = Scheduler()
    for request in requests:
        scheduler.submit(request, Scripted(decode))
    for _ in range(4):
        scheduler.step()
    scheduler.cancel(requests[1])
    assert scheduler.active == 2
    assert closed == [requests[1]]
    assert requests[1].finish_reason == "cancelled"
    assert len(requests[1].new_tokens) == 4
    scheduler.cancel(requests[1])  # again: nothing happens
    scheduler.run()
    alone = [new_request(lm, [place + 1], place) for place in range(3)]
    run(*[(request, "autoregressive") for request in alone])
    assert requests[0].new_tokens == alone[0].new_tokens
    assert requests[1].new_tokens == alone[1].new_tokens[:4]
    assert requests[2].new_tokens == alone[2].new_tokens
    assert [request.finish_reason for request in requests] == ["length", "cancelled", "length"]


@pytest.mark.parametrize("where", ["in a method", "in a pass"])
def test_an_interrupt_cancels_all(where: str) -> None:
    count = 0

    def script(prefix: tuple[int, ...]) -> torch.Tensor:
        nonlocal count
        count += 1
        if where == "in a pass" and count == 8:
            raise KeyboardInterrupt
        return torch.arange(10.0)

    lm = scripted_language_model(ScriptedScorer(script, 10))

    def interrupted(request: Request) -> Decoding:
        yield Forward(request.new_sequence(), [1])
        if where == "in a method":
            raise KeyboardInterrupt
        yield from as_method("autoregressive").decode(request)

    requests = [new_request(lm, [place + 1], place) for place in range(3)]
    scheduler = Scheduler()
    for request in requests:
        scheduler.submit(request, Scripted(interrupted) if request is requests[1] else as_method("autoregressive"))
    with pytest.raises(KeyboardInterrupt):
        scheduler.run()
    assert scheduler.active == 0
    assert [request.finish_reason for request in requests] == ["cancelled"] * 3
    assert all(request.error is None for request in requests)
    assert all(isinstance(request.events[-1], Finished) for request in requests)
