"""What stands around all routes: ids of requests, names of the server, keys, errors, and the log."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import TYPE_CHECKING

from decodery.serving import request_log, spans
from decodery.serving.failures import Failure
from decodery.serving.keys import ANYBODY, Caller
from decodery.serving.page import is_page
from decodery.serving.service import Service
from decodery.serving.transport import ClientGone, refused
from decodery.serving.visit import Visit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("decodery.serving")

OWN_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)
"""What a client may call its request."""
OPEN = ("/health", "/ready")
"""Paths that need no key and are answered to the end, for those who watch over the server."""
GONE = 499
"""Status in the log for clients that went away before there was an answer."""


class Doorway:
    """Middleware around everything. It is no class of Starlette's, so that streams pass through it unbuffered."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service, path = self._service, scope["path"]
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        own = headers.get("x-request-id", "")
        visit = Visit(own if OWN_ID.fullmatch(own) else f"req_{uuid.uuid4().hex}", Caller(ANYBODY))
        visit.context = spans.context_of(headers)
        scope["visit"] = visit
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", visit.id.encode())]
            await send(message)

        service.active += 1
        entered = False
        try:
            service.hosts.check(scope["headers"])
            if path not in OPEN:
                if not is_page(path):
                    visit.caller = service.keys.caller(headers.get("authorization"))
                service.check_open()
                service.keys.enter(visit.caller)
                entered = True
            await self._app(scope, receive, answer)
        except ClientGone:
            status = status or GONE
        except Failure as failure:
            await refused(failure)(scope, receive, answer)
        except Exception as error:
            log.error("request %s failed: %s", visit.id, error, exc_info=error)
            if not status:
                said = f"the request failed inside the server, whose log tells of it as {visit.id}."
                await refused(Failure(500, said))(scope, receive, answer)
        finally:
            if entered:
                service.keys.leave(visit.caller)
            service.active -= 1
            self._note(scope, visit, status)

    def _note(self, scope: Scope, visit: Visit, status: int) -> None:
        route = scope.get("route")
        path = getattr(route, "path", "other")
        self._service.metrics.answered(path, status)
        if path in OPEN or path == "/metrics":
            return
        request_log.note_request(
            request_id=visit.id,
            key=None if visit.caller.name == ANYBODY else visit.caller.name,
            method=scope["method"],
            path=path,
            status=status,
            seconds=round(time.perf_counter() - visit.arrived, 4),
            **{("decoding" if name == "method" else name): value for name, value in visit.told.items()},
        )
