"""Clients that read slowly, send half of what they say, or go away: the others notice nothing, and all memory comes back."""

from __future__ import annotations

import socket
from typing import Any

import httpx
from serving_models import Running, serving, wait_for
from slow_reading import connection, head, read_all, send, texts

LONG = {"model": "toy", "prompt": "hello", "max_tokens": 4000}
SHORT = {"model": "toy", "prompt": "hello", "max_tokens": 3}
MUCH = 250
"""Alternatives per token: so much to read that what is buffered on the way does not take it."""


def buffer_little(server: Running) -> None:
    """Connections from now on buffer no more than a few tokens' worth of what their clients do not read."""
    server.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)


def post(server: Running, body: Any, path: str = "/v1/completions") -> httpx.Response:
    return httpx.post(server.address + path, json=body, timeout=120)


def test_a_slow_reader_holds_up_nobody_and_misses_nothing(server: Running) -> None:
    body = {**LONG, "max_tokens": 150, "stream": True, "seed": 1, "logprobs": MUCH}
    scheduler = server.service.models.loaded["toy"].engine.scheduler
    buffer_little(server)
    with connection(server.address) as slow:
        send(slow, "/v1/completions", body, "Connection: close")
        answer = slow.recv(100)
        for _ in range(3):
            assert post(server, SHORT).status_code == 200
        wait_for(lambda: not scheduler.active)  # all is decoded, though nothing is read
        gate = server.service.models.loaded["toy"].gate
        wait_for(lambda: gate.running == 0)
        assert server.service.active == 1
        assert server.lm().budget.held == 0  # it holds no place and no memory
        answer += read_all(slow)
    whole = post(server, {**LONG, "max_tokens": 150, "seed": 1}).json()["choices"][0]["text"]
    assert texts(answer) == whole
    assert b"[DONE]" in answer
    server.wait_idle()


def test_who_never_reads_is_cut_off() -> None:
    with serving(timeout=2.0) as server:
        buffer_little(server)
        slow = connection(server.address)
        send(slow, "/v1/completions", {**LONG, "max_tokens": 150, "stream": True, "logprobs": MUCH})
        wait_for(lambda: server.service.active == 1)
        wait_for(lambda: server.service.active == 0)
        slow.close()
        server.wait_idle()


def test_half_a_body(server: Running) -> None:
    for length in (1000, 30):
        with connection(server.address) as made:
            made.sendall(head("/v1/completions", length) + b'{"prompt": "hel')
            wait_for(lambda: server.service.active == 1)
            assert post(server, SHORT).status_code == 200
        wait_for(lambda: server.service.active == 0)
    server.wait_idle()


def test_a_body_that_never_comes_is_not_waited_for_forever(server: Running, monkeypatch: Any) -> None:
    monkeypatch.setattr("decodery.serving.transport.BODY_SECONDS", 0.2)
    with connection(server.address) as made:
        made.sendall(head("/v1/completions", 1000, "Connection: close") + b"{")
        assert read_all(made).startswith(b"HTTP/1.1 408")
    server.wait_idle()


def test_no_http_at_all(server: Running) -> None:
    with connection(server.address) as made:
        made.sendall(b"\x16\x03\x01 what is this\r\n\r\n")
        assert read_all(made).startswith(b"HTTP/1.1 400")
    assert post(server, SHORT).status_code == 200


def test_who_goes_away_is_cancelled_wherever_the_request_is(server: Running) -> None:
    """While it decodes, answered as a whole or as a stream; and while it waits for a place."""
    before = server.cancelled()
    scheduler = server.service.models.loaded["toy"].engine.scheduler
    gate = server.service.models.loaded["toy"].gate
    for stream in (False, True):
        with connection(server.address) as made:
            send(made, "/v1/completions", {**LONG, "stream": stream})
            wait_for(lambda: scheduler.active == 1)
        server.wait_idle()
    gate.most, most = 1, gate.most
    try:
        with connection(server.address) as first:
            send(first, "/v1/completions", LONG)
            wait_for(lambda: gate.running == 1)
            with connection(server.address) as second:
                send(second, "/v1/completions", LONG)
                wait_for(lambda: gate.waiting == 1)
            wait_for(lambda: gate.waiting == 0)
            assert (gate.running, scheduler.active) == (1, 1)
        server.wait_idle()
    finally:
        gate.most = most
    assert server.cancelled() == before + 3


def test_a_model_stays_until_its_answers_are_read(server: Running) -> None:
    """Answers are made with it: were it unloaded before, its memory would be held all the same, and nobody would know."""
    model = server.service.models.loaded["toy"]
    buffer_little(server)
    with connection(server.address) as slow:
        send(
            slow, "/v1/completions", {**LONG, "max_tokens": 100, "stream": True, "logprobs": MUCH}, "Connection: close"
        )
        wait_for(lambda: model.gate.running == 1)
        wait_for(lambda: model.gate.running == 0)
        assert (model.users, server.lm().budget.held) == (1, 0)
        read_all(slow)
    wait_for(lambda: model.users == 0)
