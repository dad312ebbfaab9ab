"""A whole server without a socket, for programs that bring their own network (`decodery.integrations.ray`), and what such a
program needs to choose among several."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from starlette.responses import Response, StreamingResponse

from decodery.serving.app import make_app
from decodery.serving.configuration import ServerConfiguration
from decodery.serving.failures import Failure
from decodery.serving.served_models import Load
from decodery.serving.service import Service
from decodery.serving.shapes import frame
from decodery.serving.transport import refused

BEGINNING = 512
"""Signs of a body's prompt by which a replica is chosen."""
ATTEMPTS = 4
"""Replicas that a request is given to, one after the other where they die."""
DIED = Failure(503, "the replica that wrote this has died.", code="replica_died")
NOBODY = Failure(503, "no replica lives that could answer; ask again.")


class Forwarded(NamedTuple):
    """A request over HTTP. key: which replica it had best be given to; empty: any."""

    verb: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    key: str


def key_of(body: bytes) -> str:
    """What prompts that begin alike have in common: a digest of their first signs, and of the model that they ask."""
    try:
        given = json.loads(body)
        prompt = next(given[name] for name in ("messages", "prompt", "input") if given.get(name))
    except (ValueError, AttributeError, TypeError, StopIteration):
        return ""
    told = f"{given.get('model')}\0{json.dumps(prompt)[:BEGINNING]}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def ranked(names: Sequence[str], key: str) -> list[int]:
    """Places of the replicas of these names, in the order in which a request is offered to them: for one key the same, whoever
    comes or goes (rendezvous hashing)."""
    return sorted(range(len(names)), key=lambda place: hashlib.sha256(f"{key}\0{names[place]}".encode()).digest())


class Replica:
    """A whole server without a socket. values: of its `ServerConfiguration`. load: in place of `decodery.load`."""

    def __init__(self, values: Mapping[str, Any], load: Load | None = None):
        self._service = Service(ServerConfiguration(**values), load)
        self._app = make_app(self._service)
        self._starting: asyncio.Task[None] | None = None

    async def check_health(self) -> None:
        """Ray asks it now and then. Raises what loading the model raised."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._service.start())
        await asyncio.shield(self._starting)

    async def answer(self, asked: Forwarded) -> AsyncGenerator[Any, None]:
        """First the status and the headers, then the body, piece by piece."""
        await self.check_health()
        told: asyncio.Queue[MutableMapping[str, Any] | None] = asyncio.Queue()
        waiting: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": asked.body, "more_body": False}]
        gone = asyncio.Event()

        async def receive() -> MutableMapping[str, Any]:
            if waiting:
                return waiting.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            scope = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": asked.verb,
                "scheme": "http",
                "path": asked.path,
                "raw_path": asked.path.encode(),
                "query_string": asked.query,
                "root_path": "",
                "headers": asked.headers,
                "client": ("127.0.0.1", 0),
                "server": ("127.0.0.1", 0),
                "state": {},
            }
            try:
                await self._app(scope, receive, told.put)
            finally:
                await told.put(None)

        running = asyncio.create_task(run())
        try:
            while (event := await told.get()) is not None:
                if event["type"] == "http.response.start":
                    yield int(event["status"]), list(event.get("headers", ()))
                elif event.get("body"):
                    yield event["body"]
            await running
        finally:  # the client may have gone, or the answer is over
            gone.set()
            running.cancel()


async def answered(ask: Callable[[], AsyncIterator[Any]], dead: type[Exception]) -> Response:
    """The answer of the first replica that lives to give it. ask: gives a request to a replica, see
    `Replica.answer`. dead: what is raised where that has died."""
    for _ in range(ATTEMPTS):
        pieces = ask()
        try:
            status, headers = await anext(pieces)
            kept = {
                name.decode("latin-1"): value.decode("latin-1")
                for name, value in headers
                if name.lower() not in (b"content-length", b"transfer-encoding")
            }
            if kept.get("content-type", "").startswith("text/event-stream"):
                return StreamingResponse(_streamed(pieces, dead), status, kept)
            return Response(b"".join([piece async for piece in pieces]), status, kept)
        except dead:
            continue
    return refused(NOBODY)


async def _streamed(pieces: AsyncIterator[bytes], dead: type[Exception]) -> AsyncIterator[bytes]:
    try:
        async for piece in pieces:
            yield piece
    except dead:
        yield frame(DIED.as_dict())
