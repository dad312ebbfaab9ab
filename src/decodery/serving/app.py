"""The routes of the server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from decodery._version import __version__
from decodery.engine.registry import methods
from decodery.serving import experiments, page
from decodery.serving.doorway import Doorway
from decodery.serving.failures import Failure
from decodery.serving.fields import ROUTES
from decodery.serving.service import RETRY, Service
from decodery.serving.transport import Json, refused

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def make_app(service: Service) -> FastAPI:
    """The server as an ASGI application. Who runs it awaits `service.start`; its end ends the engines."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(title="decodery", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Doorway, service=service)
    if service.configuration.cors_origins:
        # Around the doorway: browsers ask what is allowed without a key, and read errors only where they may.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.configuration.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_exception_handler(HTTPException, _http_failure)
    app.add_exception_handler(Failure, _failure)
    for route in ROUTES:
        schema = {"content": {"application/json": {"schema": route.schema()}}, "required": True}
        _add(app, "POST", route.path, partial(service.decode, route=route), requestBody=schema)
    _watching(app, service)
    _telling(app, service)
    if service.configuration.playground:
        _playing(app)
    return app


def _add(app: FastAPI, verb: str, path: str, handler: Handler, **described: Any) -> None:
    async def answer(request: Request) -> Response:
        return await handler(request)

    name = path.strip("/").replace("/", "_")
    app.add_api_route(path, answer, methods=[verb], name=name, openapi_extra=described, response_class=Json)


def _watching(app: FastAPI, service: Service) -> None:
    async def health(request: Request) -> Response:
        return Json({"status": "alive"})

    async def ready(request: Request) -> Response:
        if service.ready():
            return Json({"status": "ready"})
        return Json({"status": "draining" if service.draining else "loading"}, 503, RETRY)

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, handler in (("/health", health), ("/ready", ready), ("/metrics", metrics)):
        _add(app, "GET", path, handler)


def _telling(app: FastAPI, service: Service) -> None:
    async def models(request: Request) -> Response:
        return Json({"object": "list", "data": [service.listed(name) for name in service.models.names]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in service.models.names:
            raise Failure(404, f"there is no model {name[:100]!r} here.", "model", "model_not_found")
        return Json(service.listed(name))

    async def listed_methods(request: Request) -> Response:
        return Json({"object": "list", "data": [info.as_dict() for info in methods()]})

    async def listed_settings(request: Request) -> Response:
        return Json({"object": "list", "data": page.settings_told()})

    async def method(request: Request) -> Response:
        return Json(await service.settle(request))

    async def detect(request: Request) -> Response:
        return Json(await service.detect(request))

    async def embeddings(request: Request) -> Response:
        raise Failure(404, "this server makes no embeddings; its models write text.", code="not_found")

    async def tokenize(request: Request) -> Response:
        return Json(await service.tokenize(request))

    async def next_byte(request: Request) -> Response:
        return Json(await service.next_byte(request))

    async def detokenize(request: Request) -> Response:
        return Json(await service.detokenize(request))

    async def tokenizer_info(request: Request) -> Response:
        return Json(await service.tokenizer_info(request))

    _add(app, "GET", "/v1/models", models)
    _add(app, "GET", "/v1/models/{name:path}", model)
    _add(app, "GET", "/v1/decodery/methods", listed_methods)
    _add(app, "GET", "/v1/decodery/settings", listed_settings)
    _add(app, "POST", "/v1/decodery/method", method)
    _add(app, "POST", "/v1/decodery/detect", detect)
    _add(app, "POST", "/v1/decodery/check", partial(experiments.check, service=service))
    _add(app, "POST", "/v1/embeddings", embeddings)
    _add(app, "POST", "/tokenize", tokenize)
    _add(app, "POST", "/v1/decodery/next_byte", next_byte)
    _add(app, "POST", "/detokenize", detokenize)
    _add(app, "GET", "/tokenizer_info", tokenizer_info)


def _playing(app: FastAPI) -> None:
    async def index(request: Request) -> Response:
        return page.file("index.html")

    async def file(request: Request) -> Response:
        return page.file(request.path_params["name"])

    for path, handler in (("/", index), (page.FOLDER + "{name}", file)):
        app.add_api_route(path, handler, include_in_schema=False, response_class=Response)


async def _failure(request: Request, error: Exception) -> Response:
    assert isinstance(error, Failure)
    return refused(error)


async def _http_failure(request: Request, error: Exception) -> Response:
    """What the router says itself: no such path, or another verb."""
    assert isinstance(error, HTTPException)
    said = {404: f"there is no {request.url.path[:200]!r} here.", 405: f"{request.method} is not answered here."}
    headers = dict(error.headers or {})
    return refused(
        Failure(error.status_code, said.get(error.status_code, "the request is not understood."), headers=headers)
    )
