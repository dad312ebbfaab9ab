"""decodery on Ray Serve: replicas of the server behind one address.

A front takes requests over HTTP and hands each to a replica, which is the whole server of `decodery serve` without a socket.
Which one, the beginning of the prompt decides, so that prompts which begin alike find their keys and values; where that replica
has enough to do, the next one. Where a replica dies, its requests are given to another; nothing is stored, so to ask again does
no harm. A stream that had begun ends with an error then.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import RequestRouter
from starlette.requests import Request
from starlette.responses import Response

from decodery.engine.memory import parse_size
from decodery.errors import BadSetting
from decodery.serving.configuration import ServerConfiguration
from decodery.serving.failures import Failure
from decodery.serving.replica import Forwarded, Replica, answered, key_of, ranked
from decodery.serving.transport import read_body, refused


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # where ray is not installed
    """Gives prompts that begin alike to the same replica, as long as it takes them."""

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Groups of replicas, the first choice first."""
        asked = next((one for one in getattr(pending_request, "args", ()) if isinstance(one, Forwarded)), None)
        if asked is None or not asked.key:
            return [candidate_replicas]
        names = [str(replica.replica_id.unique_id) for replica in candidate_replicas]
        return [[candidate_replicas[place]] for place in ranked(names, asked.key)]


class Front:
    """Takes requests, and gives each to a replica. most_body: bytes of a body."""

    def __init__(self, replicas: Any, most_body: int):
        self._answer = replicas.options(stream=True).answer
        self._most_body = most_body

    async def __call__(self, request: Request) -> Response:
        """The answer of any route of the server."""
        try:
            body = await read_body(request, self._most_body) if request.method == "POST" else b""
        except Failure as failure:
            return refused(failure)
        asked = Forwarded(
            request.method,
            request.url.path,
            request.scope["query_string"],
            [(bytes(name), bytes(value)) for name, value in request.scope["headers"]],
            body,
            key_of(body),
        )
        return await answered(lambda: self._answer.remote(asked), RayActorError)


def app(
    configuration: ServerConfiguration | None = None,
    *,
    replicas: int = 1,
    autoscale: tuple[int, int] | None = None,
    cpus: float = 1,
) -> serve.Application:
    """The server as a Ray Serve application, for `serve.run` or a Serve configuration file.

    configuration: of each replica; its host and port are Ray's matter. replicas: how many; or autoscale: fewest and most, by
    how many requests run. cpus: of each replica. Raises BadSetting.
    """
    told = configuration or ServerConfiguration()
    if replicas < 1:
        raise BadSetting(f"replicas must be at least 1, not {replicas}.")
    count: dict[str, Any] = {"num_replicas": replicas}
    if autoscale is not None:
        fewest, most = autoscale
        if not 0 <= fewest <= most or most < 1:
            raise BadSetting(f"autoscale takes the fewest and the most replicas, such as 1 and 4, not {autoscale}.")
        count = {"autoscaling_config": {"min_replicas": fewest, "max_replicas": most}}
    values = {field.name: getattr(told, field.name) for field in dataclasses.fields(told)}
    deployed = serve.deployment(
        Replica,
        name="decodery",
        max_ongoing_requests=told.max_concurrent,
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
        ray_actor_options={"num_cpus": cpus},
        graceful_shutdown_timeout_s=told.drain,
        **count,
    )
    fronts = serve.deployment(
        Front, name="front", max_ongoing_requests=told.max_connections, ray_actor_options={"num_cpus": 0}
    )
    return fronts.bind(deployed.bind(values), parse_size("max_body", told.max_body))


def run(
    configuration: ServerConfiguration,
    *,
    replicas: int,
    autoscale: tuple[int, int] | None,
    ready: Callable[[str], None],
) -> None:
    """Serve on the Ray cluster that is there, or else one on this machine, until a signal comes. ready: called with the address
    when the replicas are there."""
    application = app(configuration, replicas=replicas, autoscale=autoscale)
    if not ray.is_initialized():
        ray.init(include_dashboard=False)
    host, port = configuration.host, configuration.port
    serve.start(http_options={"host": host, "port": port})
    try:
        serve.run(application, name="decodery")
        ready(f"http://{host}:{port}")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        serve.shutdown()
