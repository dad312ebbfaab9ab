"""Clients that misbehave: plain sockets that send or read what they like."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit


def connection(address: str) -> socket.socket:
    """A connection with a small buffer for what comes, so that a reader who stops is noticed."""
    parts = urlsplit(address)
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(120)
    assert parts.hostname is not None
    made.connect((parts.hostname, parts.port))
    return made


def head(path: str, length: int, *more: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def send(made: socket.socket, path: str, body: Any, *more: str) -> None:
    data = json.dumps(body).encode()
    made.sendall(head(path, len(data), *more) + data)


def read_all(made: socket.socket) -> bytes:
    """Everything until the other side closes."""
    parts = []
    while part := made.recv(65536):
        parts.append(part)
    return b"".join(parts)


def texts(answer: bytes) -> str:
    """The text of a streamed completion, from the raw answer."""
    found = []
    for line in dechunked(answer).split(b"\n"):
        if line.startswith(b"data: {"):
            found += [choice["text"] for choice in json.loads(line[6:])["choices"]]
    return "".join(found)


def dechunked(answer: bytes) -> bytes:
    """The body of an answer that came in chunks."""
    rest, out = answer.partition(b"\r\n\r\n")[2], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        count = int(size, 16)
        if not count:
            break
        out, rest = out + rest[:count], rest[count + 2 :]
    return out
