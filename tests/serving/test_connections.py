"""Connections that ask for nothing: they are few, they are closed, and one too many is told so."""

from __future__ import annotations

import json
import resource
import socket
import time
from typing import Any

import httpx
import pytest
from serving_models import PATIENCE, Running, serving, wait_for
from slow_reading import connection, head, read_all, send

from decodery.serving import connections
from decodery.serving.connections import ConnectionLimit, allowed_connections

SHORT = {"model": "toy", "prompt": "hello", "max_tokens": 3}
MOST = 8


def taken(server: Running) -> int:
    """Connections that the server has."""
    return len(server.server.server_state.connections)


def idle(server: Running, count: int) -> list[socket.socket]:
    """Connections that say nothing, all of which the server has seen."""
    before = taken(server)
    made = [connection(server.address) for _ in range(count)]
    wait_for(lambda: taken(server) == min(before + count, MOST))
    return made


def test_one_too_many_is_refused_politely() -> None:
    with serving(max_connections=MOST) as server:
        with httpx.Client(timeout=PATIENCE) as client:
            assert client.post(server.address + "/v1/completions", json=SHORT).status_code == 200
            made = idle(server, MOST - 1)
            answer = httpx.post(server.address + "/v1/completions", json=SHORT)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_connections")
            assert int(answer.headers["retry-after"]) >= 1
            with connection(server.address) as silent:
                said = read_all(silent)  # who asks for nothing is told as well
            assert said.startswith(b"HTTP/1.1 503")
            assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["type"] == "server_error"
            assert client.post(server.address + "/v1/completions", json=SHORT).status_code == 200  # who was there stays
        for one in made:
            one.close()
        wait_for(lambda: taken(server) == 0)
        assert httpx.post(server.address + "/v1/completions", json=SHORT).status_code == 200


def test_who_is_in_the_middle_of_an_answer_is_left_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections go after a while, and so do those that send their head too slowly, also the second one."""
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.4)
    with serving(max_connections=MOST) as server:
        began = time.monotonic()
        made = idle(server, 3)
        with connection(server.address) as slow, connection(server.address) as second:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localh")
            send(second, "/v1/completions", SHORT)
            assert second.recv(65536).startswith(b"HTTP/1.1 200")
            second.sendall(head("/v1/completions", 10)[:30])
            body = {**SHORT, "max_tokens": 1500, "seed": 1}
            whole = httpx.post(server.address + "/v1/completions", json=body, timeout=PATIENCE)
            assert whole.status_code == 200
            assert time.monotonic() - began > 0.4, "the answer came too soon to tell"
            assert [read_all(one) for one in (*made, slow)] == [b""] * 4
            read_all(second)
        wait_for(lambda: taken(server) == 0)
        server.wait_idle()


def test_hundreds_at_once() -> None:
    """Many more than are taken: each is told so, and the server goes on."""
    with serving(max_connections=MOST) as server:
        made = idle(server, MOST)
        crowd = [connection(server.address) for _ in range(300)]
        answers = [read_all(one) for one in crowd]
        for one in crowd:
            one.close()
        assert {answer[:12] for answer in answers} == {b"HTTP/1.1 503"}
        for one in made:
            one.close()
        wait_for(lambda: taken(server) == 0)
        assert httpx.post(server.address + "/v1/completions", json=SHORT).status_code == 200


class TestLimit:
    def test_it_counts(self) -> None:
        limit = ConnectionLimit(2)
        assert [limit.enter() for _ in range(3)] == [True, True, False]
        limit.open -= 1
        assert limit.enter()

    def test_no_more_than_there_are_files_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []
        limits = {"now": (256, 1024)}
        monkeypatch.setattr(resource, "getrlimit", lambda kind: limits["now"])
        monkeypatch.setattr(resource, "setrlimit", lambda kind, value: asked.append(value))
        assert allowed_connections(100) == 100
        assert not asked
        assert allowed_connections(500) == 500
        assert asked == [(628, 1024)]
        assert allowed_connections(5000) == 1024 - connections.OTHER_FILES
        limits["now"] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        assert allowed_connections(5000) == 5000
