"""A server without a socket, and the choice among several: what programs that bring their own network use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import serving_models
from starlette.responses import Response, StreamingResponse

from decodery.serving.configuration import ServerConfiguration
from decodery.serving.replica import ATTEMPTS, Forwarded, Replica, answered, key_of, ranked

HEADERS = [(b"host", b"127.0.0.1:1"), (b"content-type", b"application/json")]


def body(**more: Any) -> bytes:
    return json.dumps({"prompt": "hello", "max_tokens": 6, "temperature": 0, **more}).encode()


def asked(text: bytes, path: str = "/v1/completions", verb: str = "POST") -> Forwarded:
    return Forwarded(verb, path, b"", HEADERS, text, key_of(text))


class TestChoice:
    def test_prompts_that_begin_alike_have_one_key(self) -> None:
        long = "You are a helper. " * 60
        talk = [{"role": "system", "content": long}]
        keys = [key_of(json.dumps({"messages": [*talk, {"role": "user", "content": said}]}).encode()) for said in "ab"]
        assert keys[0] == keys[1] != ""
        assert key_of(body(prompt="a")) != key_of(body(prompt="b"))
        assert key_of(body(model="m")) != key_of(body(model="n"))
        assert key_of(body(seed=1)) == key_of(body(seed=2))

    @pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"3", b"{}", b'{"prompt": ""}'])
    def test_what_has_no_prompt_has_no_key(self, text: bytes) -> None:
        assert key_of(text) == ""

    def test_a_key_is_offered_to_the_same_replicas_whoever_goes(self) -> None:
        names = [f"r{number}" for number in range(5)]
        firsts = []
        for number in range(200):
            order = [names[place] for place in ranked(names, f"key {number}")]
            assert sorted(order) == names
            fewer = [name for name in names if name != order[1]]
            assert [fewer[place] for place in ranked(fewer, f"key {number}")] == [n for n in order if n != order[1]]
            firsts.append(order[0])
        assert all(20 <= firsts.count(name) <= 60 for name in names), "keys are spread"


class Gone(Exception):
    """A replica has died."""


def pieces(*given: Any) -> AsyncIterator[Any]:
    async def tell() -> AsyncIterator[Any]:
        for one in given:
            if isinstance(one, Exception):
                raise one
            yield one

    return tell()


def give(*attempts: AsyncIterator[Any]) -> tuple[Response, list[Any]]:
    left = list(attempts)

    async def run() -> tuple[Response, list[Any]]:
        response = await answered(lambda: left.pop(0), Gone)
        streamed = [one async for one in response.body_iterator] if isinstance(response, StreamingResponse) else []
        return response, streamed

    return asyncio.run(run())


class TestAnswers:
    def test_of_a_replica(self) -> None:
        response, _ = give(pieces((404, [(b"content-type", b"text/plain"), (b"content-length", b"9")]), b"no", b"pe"))
        assert (response.status_code, response.body) == (404, b"nope")
        assert response.headers["content-length"] == "4"

    @pytest.mark.parametrize("died", [(Gone(),), ((200, []), b"half", Gone())])
    def test_of_the_next_replica_where_one_dies(self, died: tuple[Any, ...]) -> None:
        response, _ = give(pieces(*died), pieces((200, []), b"whole"))
        assert (response.status_code, response.body) == (200, b"whole")

    def test_where_all_die(self) -> None:
        response, _ = give(*(pieces(Gone()) for _ in range(ATTEMPTS)))
        assert response.status_code == 503
        assert "no replica lives" in json.loads(response.body)["error"]["message"]

    def test_a_stream_that_had_begun_ends_with_an_error(self) -> None:
        head = (200, [(b"content-type", b"text/event-stream; charset=utf-8")])
        response, told = give(pieces(head, b"data: 1\n\n", Gone()))
        assert response.headers["content-type"].startswith("text/event-stream")
        assert told[0] == b"data: 1\n\n"
        assert json.loads(told[1].removeprefix(b"data: "))["error"]["code"] == "replica_died"

    def test_another_error_is_not_hidden(self) -> None:
        with pytest.raises(ZeroDivisionError):
            give(pieces(ZeroDivisionError()))


def values(**changes: Any) -> dict[str, Any]:
    configuration = ServerConfiguration(models=("toy",), **changes)
    return {name: getattr(configuration, name) for name in configuration.__dataclass_fields__}


def run(replica: Replica, *questions: Forwarded) -> list[list[Any]]:
    async def all_of_them() -> list[list[Any]]:
        try:
            return [[piece async for piece in replica.answer(question)] for question in questions]
        finally:
            await replica._service.close()

    return asyncio.run(all_of_them())


def test_a_replica_is_the_whole_server() -> None:
    stream = asked(body(stream=True))
    [whole, told, listed, wrong] = run(
        Replica(values(), serving_models.load),
        asked(body()),
        stream,
        asked(b"", "/v1/models", "GET"),
        asked(body(temperature=-1)),
    )
    assert whole[0][0] == 200
    text = json.loads(b"".join(whole[1:]))["choices"][0]["text"]
    assert dict(told[0][1])[b"content-type"].startswith(b"text/event-stream")
    events = [line for line in b"".join(told[1:]).split(b"\n\n") if line.startswith(b"data: {")]
    said = [json.loads(line.removeprefix(b"data: "))["choices"] for line in events]
    assert "".join(choice["text"] for choices in said for choice in choices) == text
    assert [model["id"] for model in json.loads(b"".join(listed[1:]))["data"]] == ["toy"]
    assert wrong[0][0] == 400


def test_who_goes_away_is_cancelled() -> None:
    replica = Replica(values(), serving_models.load)

    async def leave() -> None:
        answer = replica.answer(asked(body(stream=True, max_tokens=3000)))
        assert (await anext(answer))[0] == 200
        await anext(answer)
        await answer.aclose()
        engine = replica._service.models.loaded["toy"].engine
        for _ in range(500):
            if not engine.scheduler.active:
                break
            await asyncio.sleep(0.02)
        assert not engine.scheduler.active
        await replica._service.close()

    asyncio.run(leave())


def test_what_loading_says_is_told_by_the_health() -> None:
    def broken(name: str, **options: Any) -> Any:
        raise OSError("no such disk")

    replica = Replica(values(), broken)
    with pytest.raises(Exception, match="no such disk"):
        asyncio.run(replica.check_health())
