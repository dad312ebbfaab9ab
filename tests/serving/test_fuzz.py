"""Requests made at random from what the server says of itself in /openapi.json, and heads of any kind: it never breaks.

Bodies have the types that their schemas ask for, so most get as far as being decoded or refused for what they mean; bodies of
any kind are in test_faults.py.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_models import PATIENCE, Running, serving

from decodery.serving.app import make_app
from decodery.serving.configuration import ServerConfiguration
from decodery.serving.service import Service

POSTS = {
    path: verbs["post"]["requestBody"]["content"]["application/json"]["schema"]
    for path, verbs in make_app(Service(ServerConfiguration(), environment={})).openapi()["paths"].items()
    if "requestBody" in verbs.get("post", {})
}
SHORT = {"max_tokens": 2, "max_output_tokens": 2}
WORDS = (
    "hello",
    "toy",
    "cascade",
    "prompt-lookup(length=3)",
    "beam-search",
    "hf",
    "dola(layers=low)",
    "structural",
    "ü\n",
)
LENGTHY = {"max_new_tokens", "max_tokens", "max_completion_tokens", "max_output_tokens", "min_new_tokens", "min_tokens"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(check=False) as running:
        yield running
        running.wait_idle()


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=PATIENCE) as made:
        yield made


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a schema allows, mostly small, and now and then a value at its edges."""
    if "anyOf" in schema:
        return st.one_of([values(one) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    kind = schema.get("type")
    if isinstance(kind, list):
        return st.one_of([values({**schema, "type": one}) for one in kind])
    low, high = schema.get("minimum"), schema.get("maximum")
    if kind == "integer":
        return st.integers(-3 if low is None else low, max(300 if high is None else high, low or 0))
    if kind == "number":
        floor = schema.get("exclusiveMinimum", -2.0 if low is None else low)
        return st.floats(floor, max(3.0 if high is None else high, floor), allow_nan=False)
    if kind == "string":
        return st.sampled_from(WORDS) | st.text(max_size=min(schema.get("maxLength", 12), 12))
    if kind == "array":
        inner = values(schema["items"]) if "items" in schema else st.none()
        return st.lists(inner, min_size=schema.get("minItems", 0), max_size=3)
    if kind == "object":
        message = st.fixed_dictionaries(
            {"role": st.sampled_from(("user", "system", "assistant")), "content": st.text(max_size=6)}
        )
        return message | st.dictionaries(st.text(max_size=5), st.integers(-2, 300), max_size=2)
    return st.booleans() | st.none()


@st.composite
def requests(draw: Any) -> tuple[str, dict[str, Any]]:
    """A route with its prompt and up to four other fields."""
    path = draw(st.sampled_from(sorted(POSTS)))
    properties = POSTS[path]["properties"]
    body = {name: draw(values(properties[name])) for name in POSTS[path]["required"]}
    others = draw(st.lists(st.sampled_from(sorted(set(properties) - LENGTHY)), max_size=4, unique=True))
    body |= {name: draw(values(properties[name])) for name in others}
    return path, {**body, **{name: value for name, value in SHORT.items() if name in properties}}


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(asked=requests())
def test_bodies_as_the_document_has_them(
    server: Running, client: httpx.Client, asked: tuple[str, dict[str, Any]]
) -> None:
    path, body = asked
    answer = client.post(server.address + path, json=body)
    assert answer.status_code in (200, 400, 404), (answer.text, body)
    streamed = answer.headers["content-type"].startswith("text/event-stream")
    if answer.status_code == 200 and not streamed:
        assert answer.json()["decodery"]["exactness"]
    elif answer.status_code == 200:
        assert "Traceback" not in answer.text
        assert answer.text.rstrip().endswith("data: [DONE]") or path == "/v1/responses"
    else:
        error = answer.json()["error"]
        assert (set(error), error["type"]) == ({"message", "type", "param", "code"}, "invalid_request_error")
        extras = body.get("vllm_xargs") or {}
        assert error["param"] is None or error["param"].partition(".")[0] in {*body, *extras}


TOKEN = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=':"(),/;<=>?@[]{}\\'), min_size=1, max_size=20
)
KNOWN = st.sampled_from(
    ("Content-Length", "Content-Type", "Authorization", "X-Request-Id", "Host", "Transfer-Encoding", "Expect", "Origin",
     "Connection", "Upgrade", "Accept-Encoding", "Cookie", "Content-Encoding", "Range")
)  # fmt: skip
LINES = st.tuples(KNOWN | TOKEN, st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b" ")))
BODY = json.dumps({"prompt": "hello", "max_tokens": 2}).encode()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    lines=st.lists(LINES, max_size=5), verb=st.sampled_from(("POST", "GET", "PUT", "OPTIONS", "HEAD", "TRACE", "\x00"))
)
def test_heads_of_any_kind(server: Running, client: httpx.Client, lines: list[tuple[str, bytes]], verb: str) -> None:
    """Each is answered or the connection is closed, and the next request is answered as ever."""
    parts = urlsplit(server.address)
    given = {name.lower() for name, _ in lines}
    base = [("Host", b"localhost"), ("Content-Type", b"application/json"), ("Content-Length", str(len(BODY)).encode())]
    head = [*[(name, value) for name, value in base if name.lower() not in given], *lines, ("Connection", b"close")]
    with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE) as made:  # type: ignore[arg-type]
        sent = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in head)
        answer = b""
        with contextlib.suppress(OSError):  # the server may close it before all is said, or read
            made.sendall(f"{verb} /v1/completions HTTP/1.1\r\n".encode() + sent + b"\r\n" + BODY)
            made.shutdown(socket.SHUT_WR)
            while part := made.recv(65536):
                answer += part
    if answer:
        status = int(answer.split(b" ", 2)[1])
        assert status in (100, 101, *range(200, 300), *range(400, 500), 501), answer
        assert b"Traceback" not in answer
    assert client.get(server.address + "/ready").status_code == 200
