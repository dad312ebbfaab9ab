"""Streams: events in order and as they happen, from any thread, and cancelled when they are closed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from wrapped_models import METHODS, Failing, endless_language_model

from decodery.engine.events import Event, Finished, Token
from decodery.engine.request import Request
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return endless_language_model()


def test_events_come_in_order_and_tell_the_reply(lm: LanguageModel) -> None:
    arguments: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.9, "seed": 3}
    for method in METHODS:
        lm.forget()
        reply = lm.generate("jumps over", method, **arguments)
        lm.forget()
        events = list(lm.stream("jumps over", method, **arguments))
        tokens = [event for event in events if isinstance(event, Token)]
        assert [event.token_id for event in tokens] == reply.token_ids
        assert [event.index for event in tokens] == list(range(12))
        assert "".join(event.text for event in events if isinstance(event, Token | Finished)) == reply.text
        assert isinstance(events[-1], Finished)
        assert events[-1].reason == "length"
        assert len([event for event in events if isinstance(event, Finished)]) == 1


def test_streams_of_several_requests_interleave(lm: LanguageModel) -> None:
    events = list(lm.stream(["the", "fox"], "autoregressive", n=2, max_new_tokens=3, temperature=1.0, seed=1))
    requests = [event.request for event in events if isinstance(event, Token)]
    assert requests == [0, 1, 2, 3] * 3
    assert sorted(event.request for event in events if isinstance(event, Finished)) == [0, 1, 2, 3]


def test_a_token_is_handed_out_before_the_next_is_scored(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = 0
    run_pass = lm.network.run_pass

    def counted(forwards: Sequence[Forward]) -> Any:
        nonlocal passes
        passes += 1
        return run_pass(forwards)

    monkeypatch.setattr(lm.network, "run_pass", counted)
    stream = lm.stream("the", "autoregressive", max_new_tokens=50)
    assert passes == 0
    for place in range(4):
        event = next(stream)
        assert isinstance(event, Token)
        assert passes == place + 1
    stream.close()
    assert passes == 4


def test_closing_a_stream_cancels_what_runs(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[tuple[str, int]] = []
    finish = Request.finish

    def watched(request: Request, reason: str, error: Exception | None = None) -> None:
        finish(request, reason, error)
        ended.append((reason, len(request.new_tokens)))

    monkeypatch.setattr(Request, "finish", watched)
    stream = lm.stream(["the", "fox"], "autoregressive", max_new_tokens=50)
    for _ in range(6):
        next(stream)
    stream.close()
    assert ended == [("cancelled", 3), ("cancelled", 3)]
    assert lm.generate("the", max_new_tokens=2).finish_reason == "length"


def test_the_error_of_a_request_comes_at_the_end_of_its_stream(lm: LanguageModel) -> None:
    events: list[Event] = []
    stream = lm.stream(["the", "fox"], [Failing(), "autoregressive"], max_new_tokens=3)
    with pytest.raises(ZeroDivisionError):
        events.extend(stream)
    reasons = {event.request: event.reason for event in events if isinstance(event, Finished)}
    assert reasons == {0: "error", 1: "length"}


def test_a_stream_may_be_read_while_others_run(lm: LanguageModel) -> None:
    """Another stream, and a whole request, between two events of a stream."""
    expected = [lm.generate(text, "autoregressive", max_new_tokens=6).token_ids for text in ("the", "fox")]
    streams = [lm.stream(text, "autoregressive", max_new_tokens=6) for text in ("the", "fox")]
    found: list[list[int]] = [[], []]
    for _ in range(6):
        for place, stream in enumerate(streams):
            event = next(stream)
            assert isinstance(event, Token)
            found[place].append(event.token_id)
        assert lm.generate("fox", "autoregressive", max_new_tokens=6).token_ids == expected[1]
    assert found == expected


def test_a_stream_may_be_read_from_several_threads(lm: LanguageModel) -> None:
    """A server reads each event on whatever thread is free, and closes on another; and other requests must not wait."""
    stream = lm.stream("the", "autoregressive", max_new_tokens=6)
    found: list[Any] = []

    def on_a_thread(call: Any) -> None:
        def guarded() -> None:
            try:
                found.append(call())
            except BaseException as error:
                found.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        thread.join(timeout=30)
        assert not thread.is_alive()

    for _ in range(3):
        on_a_thread(lambda: next(stream))
    on_a_thread(lambda: lm.generate("fox", max_new_tokens=2).finish_reason)
    on_a_thread(stream.close)
    assert [type(item).__name__ for item in found] == ["Token", "Token", "Token", "str", "NoneType"]
