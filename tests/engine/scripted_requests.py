"""What the tests of the scheduler share: methods written in the test, and requests run to their end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from decodery.engine.method import Decoding, Exactness, Method
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.scheduler import Scheduler
from decodery.engine.settings import Settings
from decodery.language_model import LanguageModel


@dataclass(frozen=True)
class Scripted(Method):
    """A method whose `decode` is a function of the test."""

    name: ClassVar[str] = "scripted"
    title: ClassVar[str] = "Scripted"
    paper: ClassVar[str] = "none"
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "testing"

    def __init__(self, decode: Callable[[Request], Decoding]):
        object.__setattr__(self, "_decode", decode)

    def decode(self, request: Request) -> Decoding:
        decoding: Decoding = self._decode(request)  # type: ignore[attr-defined]
        return _ended(request, decoding)


def _ended(request: Request, decoding: Decoding) -> Decoding:
    """Most functions of the tests have nothing to commit, so the request ends with them."""
    yield from decoding
    request.finish("stop")


def new_request(lm: LanguageModel, prompt: Sequence[int], number: int = 0, **settings: Any) -> Request:
    return Request(lm, prompt, Settings.of({"max_new_tokens": 12, **settings}, lm.network.vocabulary), number)


def run(*pairs: tuple[Request, Method | str]) -> Scheduler:
    scheduler = Scheduler()
    for request, method in pairs:
        scheduler.submit(request, as_method(method))
    scheduler.run()
    assert scheduler.active == 0
    assert all(request.finish_reason is not None for request, _ in pairs)
    return scheduler
