"""What fails inside the server fails alone: one request gets an error without details, the others their texts."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_models import Running, serving, toy
from torch import Tensor

from decodery.engine import registry
from decodery.engine.autoregressive import Autoregressive
from decodery.models.forward import Forward
from decodery.sampling import processors as named
from decodery.serving.fields import CHAT, COMPLETIONS, RESPONSES

BODY = {"model": "toy", "prompt": "hello", "max_tokens": 12, "seed": 4}
SECRET = "the method's own secret"


@dataclasses.dataclass(frozen=True)
class Raising(Autoregressive):
    """Commits some tokens, then fails."""

    name: ClassVar[str] = "test-raising"

    def decode(self, request: Any) -> Any:
        scores = yield Forward(request.new_sequence(), request.prompt)
        request.commit([70, 71], scores.logits[[-1, -1]])
        raise ZeroDivisionError(SECRET)


@dataclasses.dataclass(frozen=True)
class NotNumbers(named.NamedProcessor):
    """Scores that are not numbers, as a broken processor makes them."""

    name = "test-not-numbers"

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        return scores * math.nan


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    registry.register(Raising)
    named.register_processor(NotNumbers)
    try:
        with serving() as running:
            yield running
            running.wait_idle()
    finally:
        del registry._classes["test-raising"]
        del named.REGISTRY.known["test-not-numbers"]


def post(server: Running, body: Any, path: str = "/v1/completions") -> httpx.Response:
    return httpx.post(server.address + path, json=body, timeout=120)


def test_a_method_that_raises(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "decodery.serving"):
        answer = post(server, {**BODY, "method": "test-raising"})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (500, "server_error")
    for told in ("ZeroDivision", SECRET, "Traceback", "/"):
        assert told not in json.dumps(error)
    assert answer.headers["x-request-id"] in error["message"]
    logged = next(record for record in caplog.records if answer.headers["x-request-id"] in record.getMessage())
    assert SECRET in logged.getMessage()
    assert logged.exc_info is not None
    server.wait_idle()


def test_a_method_that_raises_in_a_stream(server: Running) -> None:
    client = server.client()
    found = ""
    stream = client.completions.create(**BODY, stream=True, extra_body={"method": "test-raising"})
    while len(found) < 2:
        found += next(stream).choices[0].text
    assert found == "FG"
    with pytest.raises(openai.APIError, match="failed inside the server"):
        next(stream)
    kinds = []
    for event in client.responses.create(
        model="toy", input="hello", stream=True, extra_body={"method": "test-raising"}
    ):
        kinds.append(event.type)
        if event.type == "response.failed":
            assert event.response.error is not None
            assert SECRET not in event.response.error.message
    assert kinds[-1] == "response.failed"
    server.wait_idle()


def test_scores_that_are_not_numbers(server: Running) -> None:
    answer = post(server, {**BODY, "processors": ["test-not-numbers"]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "processors"
    assert post(server, {**BODY, "logit_bias": {str(token): -1e308 for token in range(260)}}).status_code in (200, 400)
    server.wait_idle()


def test_a_network_whose_scores_are_not_numbers() -> None:
    def load(name: str, **options: Any) -> Any:
        lm = toy()
        run_pass = lm.network.run_pass

        def spoiled(forwards: Any) -> Any:
            answers = run_pass(forwards)
            for forward, scores in zip(forwards, answers, strict=True):
                if 33 in list(forward.tokens):
                    scores.logits.fill_(math.nan)
            return answers

        lm.network.run_pass = spoiled  # type: ignore[method-assign]
        return lm

    with serving(load) as server:
        answer = post(server, {**BODY, "prompt": "he!!o"})
        assert answer.status_code == 500, answer.text
        assert post(server, BODY).status_code == 200
        server.wait_idle()


def test_others_notice_nothing(server: Running) -> None:
    """Good requests beside failing ones in the same passes."""
    alone = post(server, BODY).json()["choices"][0]["text"]
    bodies = [BODY, {**BODY, "method": "test-raising"}, {**BODY, "processors": ["test-not-numbers"]}] * 4

    async def all_of_them() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=120) as client:
            import asyncio

            posts = (client.post(server.address + "/v1/completions", json=body) for body in bodies)
            return await asyncio.gather(*posts)

    import asyncio

    answers = asyncio.run(all_of_them())
    assert [answer.status_code for answer in answers] == [200, 500, 400] * 4
    assert {answer.json()["choices"][0]["text"] for answer in answers[::3]} == {alone}
    server.wait_idle()


def test_a_pass_that_fails_as_a_whole(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of one request, but of the scheduler itself: what runs is lost, the server is not."""
    engine = server.service.models.loaded["toy"].engine
    step, calls = type(engine.scheduler).step, [0]

    def broken(scheduler: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise RuntimeError(SECRET)
        step(scheduler)

    monkeypatch.setattr(type(engine.scheduler), "step", broken)
    answer = post(server, BODY)
    assert answer.status_code == 500
    assert SECRET not in answer.text
    assert post(server, BODY).status_code == 200
    server.wait_idle()


def test_unknown_paths_and_verbs(server: Running) -> None:
    for verb, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405), ("POST", "/health", 405)):
        answer = httpx.request(verb, server.address + path)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.headers["x-request-id"]


# Fuzzing

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
GOOD = {
    CHAT.path: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    COMPLETIONS.path: {"prompt": "hi", "max_tokens": 2},
    RESPONSES.path: {"input": "hi", "max_output_tokens": 2},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [104]},
    "/v1/decodery/next_byte": {"prompt": "hi"},
}
NAMES = (
    {
        route.path: sorted({*route.fields, *route.settings(), *route.not_offered} - {"max_tokens"})
        for route in (CHAT, COMPLETIONS, RESPONSES)
    }
    | {"/tokenize": ["messages", "add_special_tokens", "return_token_strs"], "/detokenize": ["tokens", "model"]}
    | {"/v1/decodery/next_byte": ["messages", "top", "fast", "model"]}
)


@st.composite
def bodies(draw: Any) -> tuple[str, bytes]:
    path = draw(st.sampled_from(sorted(GOOD)))
    fields = draw(st.dictionaries(st.sampled_from(NAMES[path]) | st.text(max_size=8), VALUES, max_size=3))
    data = json.dumps({**GOOD[path], **fields}).encode()
    cut = draw(st.none() | st.integers(0, len(data)))
    return path, data if cut is None else data[:cut] + draw(st.binary(max_size=4)) + data[cut + 1 :]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=bodies())
def test_fuzzed_bodies_never_break_the_server(
    server: Running, fuzz_client: httpx.Client, asked: tuple[str, bytes]
) -> None:
    path, data = asked
    answer = fuzz_client.post(server.address + path, content=data, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 404), (answer.status_code, answer.text, data)
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert "Traceback" not in error["message"]


@pytest.fixture(scope="module")
def fuzz_client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=120) as client:
        yield client
