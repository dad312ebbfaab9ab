"""How many connections there are, and how long one may stay without asking for anything.

A connection costs a file of this process, of which there are few; were they used up, nobody could be told so. One too many is
answered with 503 before it has said anything, and closed.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from decodery.serving.failures import Failure
from decodery.serving.shapes import json_text

log = logging.getLogger("decodery.serving")

IDLE_SECONDS = 60.0
"""Until a connection must have sent the head of a request."""
LAST_WORD_SECONDS = 1.0
"""How long a connection that is refused may stay to read that it is."""
LAST_WORDS = 64
"""Most of those that stay so; beyond them connections are closed at once, and only who has sent nothing yet reads why."""
OTHER_FILES = 128
"""Files that this process needs besides connections."""


class ConnectionLimit:
    """most: connections at a time. open: those there are. leaving: refused ones that may still read so."""

    def __init__(self, most: int):
        self.most, self.open, self.leaving = most, 0, 0
        self._told = False

    def enter(self) -> bool:
        """Whether there is room for one more, which is then counted."""
        if self.open >= self.most:
            if not self._told:
                log.warning("refusing connections: there are %d, and no more are taken", self.open)
            self._told = True
            return False
        self._told = False
        self.open += 1
        return True


def allowed_connections(wanted: int) -> int:
    """As many of `wanted` connections as this process may have files for; it asks the system for more where it has too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < need:
        raised = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    if soft == resource.RLIM_INFINITY or soft >= need:
        return wanted
    allowed = max(1, soft - OTHER_FILES)
    log.warning("%d connections are taken at most, not %d: this process may open %d files", allowed, wanted, soft)
    return allowed


class BoundedConnection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection as uvicorn has it, among a limited number, which is closed where it asks for nothing."""

    def __init__(self, limit: ConnectionLimit, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._limit = limit
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take it, or say that there are too many."""
        if self._limit.enter():
            super().connection_made(transport)
            self._await_request()
            return
        self._refused = True
        self.transport = transport
        transport.write(_refusal())
        if self._limit.leaving >= LAST_WORDS:
            transport.abort()
            return
        # Not closed at once: what the client has sent and nobody reads would make the system throw the answer away.
        if transport.can_write_eof():
            transport.write_eof()
        self._limit.leaving += 1
        self._timer = self.loop.call_later(LAST_WORD_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """What a refused client says is not read."""
        if not self._refused:
            super().data_received(data)

    def on_response_complete(self) -> None:
        """The next request may come."""
        self._await_request()
        super().on_response_complete()

    def connection_lost(self, error: Exception | None) -> None:
        """It is over."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._refused:
            self._limit.open -= 1
            super().connection_lost(error)
        elif self._timer is not None:
            self._limit.leaving -= 1

    def _await_request(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(IDLE_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()


def _refusal() -> bytes:
    failure = Failure(503, "there are too many connections; try again later.", code="too_many_connections")
    body = json_text(failure.as_dict()).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Retry-After: 1",
        "Connection: close",
    )
    return "\r\n".join([*head, "", ""]).encode() + body
