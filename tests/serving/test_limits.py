"""How much at once, how long, how large, and who."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving_models import Running, serving, wait_for

from decodery.errors import BadInput
from decodery.serving.admission import Gate
from decodery.serving.failures import Failure
from decodery.serving.keys import Caller, KeyRing, read_keys

LONG = {"model": "toy", "prompt": "hello", "max_tokens": 4000}
SHORT = {"model": "toy", "prompt": "hello", "max_tokens": 3}


def post(server: Running, body: Any, path: str = "/v1/completions", **headers: str) -> httpx.Response:
    return httpx.post(server.address + path, json=body, headers=headers, timeout=120)


class TestGate:
    def test_places_queue_and_refusal(self) -> None:
        async def scenario() -> None:
            gate = Gate(2, 2)
            await gate.enter()
            await gate.enter()
            order: list[int] = []

            async def one(number: int) -> None:
                await gate.enter()
                order.append(number)

            waiting = [asyncio.create_task(one(number)) for number in range(2)]
            await asyncio.sleep(0)
            assert (gate.running, gate.waiting) == (2, 2)
            with pytest.raises(Failure) as refused:
                await gate.enter()
            assert refused.value.status == 429
            assert int(refused.value.headers["Retry-After"]) >= 1
            gate.leave(0.1)
            await asyncio.gather(waiting[0])
            assert order == [0]
            gate.leave(0.1)
            await asyncio.gather(*waiting)
            assert (gate.running, gate.waiting, order) == (2, 0, [0, 1])
            gate.leave(0.1)
            gate.leave(0.1)
            assert gate.running == 0

        asyncio.run(scenario())

    @pytest.mark.parametrize("when", ["waiting", "called"])
    def test_who_goes_away_takes_no_place_along(self, when: str) -> None:
        async def scenario() -> None:
            gate = Gate(1, 5)
            await gate.enter()
            gone, stays = (asyncio.create_task(gate.enter()) for _ in range(2))
            await asyncio.sleep(0)
            if when == "waiting":
                gone.cancel()
                gate.leave(0.1)  # before its task could take itself off the queue
            else:
                gate.leave(0.1)
                gone.cancel()  # after its turn has come
            await asyncio.gather(gone, return_exceptions=True)
            async with asyncio.timeout(1):
                await stays
            assert (gate.running, gate.waiting) == (1, 0)
            gate.leave(0.1)
            assert gate.running == 0

        asyncio.run(scenario())

    def test_advice_follows_how_long_requests_take(self) -> None:
        async def scenario() -> tuple[int, int]:
            gate, advice = Gate(1, 0), []
            for seconds in (0.1, 500.0):
                await gate.enter()
                for _ in range(40):
                    gate.leave(seconds)
                    await gate.enter()
                with pytest.raises(Failure) as refused:
                    await gate.enter()
                advice.append(int(refused.value.headers["Retry-After"]))
                gate.leave(seconds)
            return advice[0], advice[1]

        assert asyncio.run(scenario()) == (1, 60)


def test_too_many_at_once_get_429_and_those_that_wait_get_their_turn() -> None:
    with serving(max_concurrent=1, max_queue=1) as server:
        gate = server.service.models.loaded["toy"].gate
        stream = server.client().completions.create(**LONG, stream=True)
        next(iter(stream))
        found: list[Any] = []
        waiting = threading.Thread(target=lambda: found.append(server.client().completions.create(**SHORT)))
        waiting.start()
        wait_for(lambda: gate.waiting == 1)
        with pytest.raises(openai.RateLimitError, match="1 requests run and 1 wait") as refused:
            server.client().completions.create(**SHORT)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        stream.close()
        waiting.join(120)
        assert len(found[0].choices[0].text) == 3
        server.wait_idle()


def test_requests_end_with_the_timeout() -> None:
    with serving(timeout=0.4) as server:
        answer = post(server, LONG)
        assert answer.status_code == 504
        assert answer.json()["error"]["type"] == "timeout_error"
        server.wait_idle()
        answer = post(server, {**LONG, "stream": True})
        assert answer.status_code == 200
        last = [line for line in answer.text.splitlines() if line][-2:]
        assert '"timeout_error"' in last[0]
        assert last[1] == "data: [DONE]"
        server.wait_idle()


def test_sizes_and_types_of_bodies() -> None:
    with serving(max_body="2KB", max_texts=3) as server:
        assert post(server, {**SHORT, "prompt": "x" * 2000}).status_code == 413
        url = server.address + "/v1/completions"

        def parts() -> Any:
            for _ in range(50):
                yield b" " * 100

        kind = {"Content-Type": "application/json"}
        answer = httpx.post(url, content=parts(), headers=kind)  # no length is told before
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        for other in ({"Content-Type": "text/plain"}, {}):
            answer = httpx.post(url, content=b"{}", headers=other)
            assert answer.status_code == 415
        refused = post(server, {**SHORT, "prompt": ["a", "b"], "n": 2})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
        refused = post(server, {**SHORT, "prompt": ["a", "b"], "num_return_sequences": 2})
        assert refused.json()["error"]["param"] == "num_return_sequences"
        assert post(server, {**SHORT, "prompt": ["a", "b", "c"]}).status_code == 200


def test_the_context_is_a_limit_and_defaults_respect_it() -> None:
    with serving(default_max_tokens=5) as server:
        error = post(server, {"prompt": "x" * 4090, "max_tokens": 10}).json()["error"]
        assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
        talk = {"messages": [{"role": "user", "content": "x" * 5000}]}
        assert post(server, talk, "/v1/chat/completions").json()["error"]["param"] == "messages"
        talk = {"messages": [{"role": "user", "content": "x" * 4090}]}
        told = post(server, talk, "/v1/chat/completions").json()["usage"]
        assert (told["prompt_tokens"], told["completion_tokens"]) == (4093, 3)  # no more fit
        talk = {"messages": [{"role": "user", "content": "hello"}]}
        assert post(server, talk, "/v1/chat/completions").json()["usage"]["completion_tokens"] == 5


# Who


def test_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# who may ask\nsecret-1\nanna secret-2 1\n")
    with serving(api_key_file=str(keys), key="secret-2") as server:
        for wrong in (
            {},
            {"Authorization": "Bearer secret-3"},
            {"Authorization": "secret-1"},
            {"Authorization": "Basic secret-1"},
        ):
            answer = post(server, SHORT, **wrong)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert "secret" not in answer.text
            for path in ("/metrics", "/v1/models", "/openapi.json", "/nowhere"):
                assert httpx.get(server.address + path, headers=wrong).status_code == 401
        for path in ("/health", "/ready"):
            assert httpx.get(server.address + path).status_code == 200
        assert post(server, SHORT, Authorization="Bearer secret-1").status_code == 200
        stream = server.client().completions.create(**LONG, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="1 requests running or waiting"):
            server.client().completions.create(**SHORT)
        assert post(server, SHORT, Authorization="Bearer secret-1").status_code == 200  # another's limit is another's
        stream.close()
        server.wait_idle()
        assert len(server.client().completions.create(**SHORT).choices) == 1


def test_the_key_of_the_environment_and_the_common_limit() -> None:
    ring = KeyRing.of(None, {"DECODERY_API_KEY": "secret"}, limit=2)
    caller = ring.caller("Bearer secret")
    assert (caller.name, caller.limit) == ("environment", 2)
    ring.enter(caller)
    ring.enter(caller)
    with pytest.raises(Failure) as refused:
        ring.enter(caller)
    assert refused.value.status == 429
    ring.leave(caller)
    ring.enter(caller)
    assert KeyRing.of(None, {}, 2).caller(None).name == "anybody"
    assert KeyRing.of(None, {}, 2).open


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds none"),
        ("a b c", "line 1"),
        ("a b 0", "line 1"),
        ("k\nk", "line 2"),
        ("a k\na l", "line 2"),
        ("a b 1 d", "line 1"),
    ],
)  # fmt: skip
def test_files_of_keys_that_cannot_be_read(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(BadInput, match=says):
        read_keys(path)
    with pytest.raises(BadInput, match="cannot be read"):
        read_keys(tmp_path / "nothing")
    path.write_text("b second 3 # hers\nfirst\n")
    assert read_keys(path) == {"second": Caller("b", 3), "first": Caller("key-2")}


def test_web_pages_may_ask_only_where_they_are_allowed(server: Running) -> None:
    ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(server.address + "/v1/completions", headers=ask)
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers
    with serving(cors_origins=["https://a.example"]) as other:
        answer = httpx.options(other.address + "/v1/completions", headers=ask)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        answer = post(other, {"nonsense": 1}, Origin="https://a.example")
        assert answer.status_code == 400
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        answer = httpx.options(other.address + "/v1/completions", headers={**ask, "Origin": "https://b.example"})
        assert "access-control-allow-origin" not in answer.headers
