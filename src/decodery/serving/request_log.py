"""The log: a line for each request, and for what happens to models; as text, or as JSON for machines."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any, TextIO

LOGGERS = ("decodery", "uvicorn.error")
requests = logging.getLogger("decodery.serving.requests")


class JsonLines(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        told = {"time": _when(record.created), "level": record.levelname.lower(), "logger": record.name}
        fields: dict[str, Any] = getattr(record, "fields", {})
        told |= fields or {"message": record.getMessage()}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


class TextLines(logging.Formatter):
    """For people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] | None = getattr(record, "fields", None)
        if fields is not None:
            record.message = record.msg = " ".join(f"{name}={_word(value)}" for name, value in fields.items())
            record.args = ()
        return super().format(record)


def set_up(as_json: bool, stream: TextIO | None = None) -> None:
    """Send the log to standard error, or to a stream."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if as_json else TextLines())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    logging.getLogger("decodery").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def note_request(**fields: Any) -> None:
    """Write the line of a request that was answered."""
    requests.info("request", extra={"fields": {name: value for name, value in fields.items() if value is not None}})


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds")


def _word(value: Any) -> str:
    """A value without spaces or line ends that could be taken for another field or line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if text.isascii() and text.isprintable() and " " not in text else json.dumps(text)
