"""Runs a server until it is told to stop: starts listening, loads the first model, and drains on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn

from decodery.errors import BadInput
from decodery.serving import request_log, spans
from decodery.serving.app import make_app
from decodery.serving.configuration import ServerConfiguration, is_loopback
from decodery.serving.connections import BoundedConnection, ConnectionLimit, allowed_connections
from decodery.serving.served_models import Load
from decodery.serving.service import Service

log = logging.getLogger("decodery.serving")

LAST_SECONDS = 5
"""What connections get to close, after everything has been answered or ended."""


class DrainingServer(uvicorn.Server):
    """Uvicorn, which on the first signal answers new requests with 503 and lets running ones finish, and on the second ends."""

    def __init__(self, configuration: uvicorn.Config, service: Service, ready: Callable[[str], None]):
        super().__init__(configuration)
        self._service, self._ready = service, ready
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failed: Exception | None = None
        """What kept the first model from being loaded."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and load the first model meanwhile."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._tasks.append(self._loop.create_task(self._load_first()))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        if self._service.draining or self._loop is None:
            self.should_exit = self.force_exit = True
        else:
            self._loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """Drain, and then end. On the event loop."""
        if not self._service.draining:
            self._tasks.append(asyncio.get_running_loop().create_task(self._drain()))

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def _load_first(self) -> None:
        try:
            await self._service.start()
        except Exception as error:
            self.failed, self.should_exit = error, True
        else:
            self._ready(self.address)

    async def _drain(self) -> None:
        await self._service.drain()
        self.should_exit = True


def make_server(
    configuration: ServerConfiguration, ready: Callable[[str], None], load: Load | None = None
) -> DrainingServer:
    """A server that is not running yet. ready: called with the address when the first model is loaded."""
    service = Service(configuration, load)
    if service.keys.open and not is_loopback(configuration.host):
        log.warning("everybody who reaches %s may use this server: it asks for no API key", configuration.host)
    settings = uvicorn.Config(
        make_app(service),
        host=configuration.host,
        port=configuration.port,
        log_config=None,
        access_log=False,
        server_header=False,
        http=partial(BoundedConnection, ConnectionLimit(allowed_connections(configuration.max_connections))),  # type: ignore[arg-type]
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    return DrainingServer(settings, service, ready)


def serve(configuration: ServerConfiguration, ready: Callable[[str], None], load: Load | None = None) -> None:
    """Serve until a signal comes. Raises BadInput where the address cannot be had, and what loading the first model raises."""
    request_log.set_up(configuration.log_json)
    server = make_server(configuration, ready, load)
    _check_free(configuration)
    with contextlib.suppress(KeyboardInterrupt), spans.exporting():
        server.run()
    if server.failed is not None:
        raise server.failed


def _check_free(configuration: ServerConfiguration) -> None:
    """Raise BadInput where nobody can listen at the address, before a model is loaded in vain."""
    try:
        family = socket.getaddrinfo(configuration.host, configuration.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((configuration.host, configuration.port))
    except OSError as error:
        raise BadInput(f"{configuration.host}:{configuration.port} cannot be listened at: {error.strerror}.") from None
