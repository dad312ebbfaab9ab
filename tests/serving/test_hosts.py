"""By which names a server may be called."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from serving_models import Running, serving

from decodery.errors import BadSetting
from decodery.serving.configuration import ServerConfiguration
from decodery.serving.failures import Failure
from decodery.serving.hosts import AllowedHosts, host_name


def allowed(*headers: str, host: str = "127.0.0.1", hosts: tuple[str, ...] = ()) -> bool:
    """Whether a server that listens at a host answers a request with these Host headers."""
    names = AllowedHosts(ServerConfiguration(host=host, allowed_hosts=hosts))
    try:
        names.check([(b"accept", b"*/*"), *((b"host", header.encode("latin-1")) for header in headers)])
    except Failure as failure:
        return (failure.status, failure.code) != (421, "unknown_host")
    return True


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"), ("LocalHost:8000", "localhost"), ("127.0.0.1:8000", "127.0.0.1"),
        ("[::1]", "::1"), ("[::1]:8000", "::1"), (" a.example ", "a.example"), ("[::1", ""), ("[::1]x", ""), ("", ""),
        ("::1", ""),
    ],
)  # fmt: skip
def test_names_of_headers(header: str, name: str) -> None:
    assert host_name(header) == name


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_on_loopback_only_its_own_names_are_answered(host: str) -> None:
    for good in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", f"[{host}]" if ":" in host else host):
        assert allowed(good, host=host)
    for bad in ("evil.example", "evil.example:8000", "localhost.evil.example", "localhost.", "127.0.0.3", "", "[::2]"):
        assert not allowed(bad, host=host)
    assert not allowed(host=host)
    assert not allowed("localhost", "evil.example", host=host)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        (["evil.example:80"], "to 'evil.example:80';"), ([], "to 0 names;"), (["localhost", "localhost"], "to 2 names;"),
        (["x" * 300], f"to '{'x' * 100}';"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(headers: list[str], says: str) -> None:
    with pytest.raises(Failure) as refused:
        AllowedHosts(ServerConfiguration()).check([(b"host", header.encode()) for header in headers])
    assert says in refused.value.message
    assert "--allowed-host" in refused.value.message


def test_further_names_where_they_are_given() -> None:
    for good in ("models.example", "Models.Example:443", "[fe80::1]:8000", "localhost"):
        assert allowed(good, hosts=("Models.example", "[fe80::1]"))
    assert allowed("[fe80::1]", hosts=("fe80::1",))
    assert not allowed("evil.example", hosts=("models.example",))


def test_elsewhere_any_name_unless_some_are_given() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.7"):
        assert allowed("any.example", host=host)
        assert allowed(host=host)
        assert not allowed("any.example", host=host, hosts=("models.example",))
        assert allowed("models.example", host=host, hosts=("models.example",))
        assert allowed("localhost:8000", host=host, hosts=("models.example",))
    assert allowed("192.168.0.7:8000", host="192.168.0.7", hosts=("models.example",))
    assert not allowed("0.0.0.0", host="0.0.0.0", hosts=("models.example",))


@pytest.mark.parametrize(
    "name", ["https://models.example", "models.example:443", "models.example/", "a b", "*", "é.example"]
)
def test_what_is_no_name(name: str, command: Any) -> None:
    with pytest.raises(BadSetting, match="without scheme and port"):
        ServerConfiguration(allowed_hosts=(name,))
    result = command("serve", "--allowed-host", name, "--port", "0")
    assert result.code == 2
    assert "allowed_hosts names hosts without scheme and port" in result.err


def ask(server: Running, path: str, host: str) -> str:
    """The first line of the answer to a request with this Host header."""
    address, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((address, int(port)), timeout=120) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    if b"421" in answer.split(b"\r\n")[0]:
        assert b"does not answer to" in answer
    return answer.split(b"\r\n")[0].decode()


def test_a_server_refuses_other_names_on_every_path(server: Running) -> None:
    for path in (
        "/",
        "/playground/main.js",
        "/health",
        "/ready",
        "/metrics",
        "/v1/models",
        "/openapi.json",
        "/nowhere",
    ):
        assert " 421 " in ask(server, path, "evil.example:8000"), path
    assert " 200 " in ask(server, "/v1/models", "localhost:1")
    assert " 200 " in ask(server, "/", "127.0.0.1")
    with serving(allowed_hosts=["models.example"]) as other:
        assert " 200 " in ask(other, "/v1/models", "models.example")
        assert " 421 " in ask(other, "/v1/models", "evil.example")
