"""What went wrong, in the form in which OpenAI's server says it; without tracebacks and without paths of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from decodery.errors import (
    BadParameter,
    BadPrompt,
    DecoderyError,
    MethodUnavailable,
    NotEnoughMemory,
    ScoresNotNumbers,
    UnknownMethod,
)

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
"""Status -> the type that stands in the error; all others are the request's own fault."""


class Failure(Exception):
    """An answer other than 200. param: the field that is to blame; code: a word for programs; headers: of the answer."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_field(name: str, message: str, code: str | None = None) -> Failure:
    """400, because of a field."""
    return Failure(400, message, name, code)


def failure_of(error: Exception, fields: Mapping[str, str], prompt: str, request_id: str) -> Failure:
    """The answer where checking or decoding a request has raised.

    fields: how messages call what the request gives -> the field; the first that the message names is to blame. prompt: the
    field that holds the prompt. request_id: by which the log has what is not told.
    """
    if isinstance(error, Failure):
        return error
    internal = isinstance(error, ScoresNotNumbers) and error.raw
    if not isinstance(error, DecoderyError) or internal:
        return Failure(500, f"the request failed inside the server, whose log tells of it as {request_id}.")
    message = str(error)
    if isinstance(error, BadPrompt):
        too_long = "has a context of" in message
        return bad_field(prompt, message, "context_length_exceeded" if too_long else None)
    if isinstance(error, NotEnoughMemory):
        return bad_field(prompt, message, "context_length_exceeded")
    if isinstance(error, BadParameter | UnknownMethod | MethodUnavailable):
        return bad_field("method", message)
    named = (fields[word] for word in re.findall(r"\w+", message) if word in fields)
    return bad_field(next(named, "method"), message)
