"""How bodies come in and answers go out: limits, clients that go away, streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from decodery.serving.failures import Failure
from decodery.serving.shapes import json_text

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

Value = TypeVar("Value")
BODY_SECONDS = 60.0
"""Until a body must have come."""
LAST_WORD_SECONDS = 1.0
"""What a client whose time is over gets to read that it is."""


class Json(Response):
    """An answer of JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json_text(content).encode()


def refused(failure: Failure) -> Json:
    """The answer of a failure."""
    return Json(failure.as_dict(), failure.status, failure.headers)


class EventStream(Response):
    """Server-sent events. What makes them ends when the client goes away, or with the deadline; so does who reads too slowly
    for that. The job that they are of is not held up meanwhile."""

    media_type = "text/event-stream"

    def __init__(
        self, frames: AsyncIterator[bytes], seconds: float, late: Callable[[], bytes], close: Callable[[], None]
    ):
        """seconds: until the last frame must be read. late: what is said where that is over. close: called in the end."""
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._frames, self._seconds, self._late, self._close = frames, seconds, late, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await watched(self._send(send), receive)
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                async for data in self._frames:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            self._close()
            # Who still reads is told; of who does not, the connection is closed when this returns.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_SECONDS):
                    await send({"type": "http.response.body", "body": self._late(), "more_body": False})


class ClientGone(Exception):
    """The client has closed the connection."""


async def watched(work: Awaitable[Value], receive: Receive) -> Value:
    """Do something unless the client goes away meanwhile: then it is cancelled, and ClientGone raised."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    doing, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((doing, watching), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientGone
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request. Raises Failure where it is too large, of another type, or does not come."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Not only for order: a page of any web site may send forms to this machine, but JSON only where CORS allows it.
        raise Failure(415, "the body must be JSON, with the header Content-Type: application/json.")
    length = request.headers.get("content-length", "")
    too_large = Failure(413, f"the body is larger than the {most} bytes that this server takes.", code="body_too_large")
    if length.isdecimal() and int(length) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise Failure(408, "the body did not come in time.") from None
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(body)
