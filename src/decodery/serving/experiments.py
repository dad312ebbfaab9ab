"""/v1/decodery/check: an experiment of its own, in a process of its own, so that it holds up no engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from decodery.engine import registry
from decodery.errors import BadParameter, BadSetting, MethodUnavailable, UnknownMethod
from decodery.sampling.settings import ANY_VOCABULARY, Real, ValueKind, Whole
from decodery.serving.asked import read_json
from decodery.serving.failures import Failure, bad_field
from decodery.serving.fields import SPEC
from decodery.serving.transport import Json, read_body, watched

if TYPE_CHECKING:
    from decodery.serving.service import Service

log = logging.getLogger("decodery.serving")

REFUTED = 1
LONGEST = 100_000
"""Bytes of a body."""
OPTIONS: dict[str, ValueKind] = {
    "prompts": Whole(1, 80),
    "max_new_tokens": Whole(1, 512),
    "samples": Whole(100, 20_000),
    "significance": Real(0.0, 0.5, open_low=True),
    "seed": Whole(0),
}
_running: set[int] = set()
"""The services that run an experiment now; each runs one at a time."""


async def check(request: Request, service: Service) -> Response:
    """What `decodery check METHOD --json` says of a method on a served model, loaded in float32 once more."""
    if not service.configuration.check:
        raise Failure(404, "this server was started without checks.", code="not_found")
    body = read_json(await read_body(request, LONGEST))
    arguments = _arguments(body, service)
    if id(service) in _running:
        said = "an experiment runs already, and there is room for one at a time."
        raise Failure(429, said, code="rate_limit_exceeded", headers={"Retry-After": "30"})
    _running.add(id(service))
    try:
        return await watched(_run(arguments, service.configuration.timeout), request.receive)
    finally:
        _running.discard(id(service))


def _arguments(body: dict[str, Any], service: Service) -> list[str]:
    """Of the command line. Raises Failure."""
    given = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name not in ("model", "method", *OPTIONS):
            known = ", ".join(("model", "method", *OPTIONS))
            raise bad_field(name, f"{name[:100]!r} is no field of a check; known: {known}.", "unknown_field")
    name = given.pop("model", service.models.first)
    if not isinstance(name, str) or name not in service.models.names:
        raise Failure(404, f"there is no model {str(name)[:100]!r} here.", "model", "model_not_found")
    try:
        spec = SPEC.check("method", given.pop("method", None), ANY_VOCABULARY)
        if registry.files_of(registry.method(spec)):
            raise bad_field("method", "a parameter names a file of the server, which requests must not read.")
    except (BadSetting, BadParameter, UnknownMethod, MethodUnavailable) as error:
        raise bad_field("method", str(error)) from None
    values = []
    for option, value in given.items():
        try:
            values.append(f"--{option.replace('_', '-')}={OPTIONS[option].check(option, value, ANY_VOCABULARY)}")
        except BadSetting as error:
            raise bad_field(option, str(error)) from None
    if service.configuration.threads is not None:
        values.append(f"--threads={service.configuration.threads}")
    return ["check", f"--model={service.models.names[name]}", "--json", *values, "--", spec]


async def _run(arguments: list[str], seconds: float) -> Response:
    # With a lower priority: what is served goes first.
    code = "import os; hasattr(os, 'nice') and os.nice(10); from decodery.cli.main import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(seconds):
            out, said = await process.communicate()
    except TimeoutError:
        raise Failure(504, "the experiment took longer than this server allows.") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode in (0, REFUTED) and out:
        return Json(json.loads(out))
    log.error("a check ended with %s: %s", process.returncode, said.decode(errors="replace").strip())
    if process.returncode == 2:
        raise bad_field("method", "this method cannot be checked on this model; the server's log says why.")
    raise Failure(500, "the experiment failed; the server's log says why.")
