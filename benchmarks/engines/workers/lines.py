"""The engine's end of the conversation: one JSON object per line on standard input, one on standard output.

    {"op": "load", "settings": {...}}                     -> {"versions": {...}, "settings": {...}}
    {"op": "generate", "prompts": [[ids]], "new_tokens": 128, "ends": [], "way": "", "session": ""}
                                                          -> {"tokens": [[ids]], "seconds": 1.2, ...}
    {"op": "measure"}                                     -> {"sum": 3.1e10, ...}
    {"op": "stop"}                                        -> {}

What fails is answered with {"error": "one sentence"}. This file uses nothing but Python's own library, because it runs in the
environment of every engine.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any


@dataclass(frozen=True)
class Ask:
    """Requests to be decoded together, greedily.

    prompts: token ids. new_tokens: of each answer; fewer only where `ends` is not empty and one of these tokens came. way: how
    to decode, of an engine that knows several. session: requests of one session may learn from each other; answers of
    another session must not be used.
    """

    prompts: list[list[int]]
    new_tokens: int
    ends: list[int] = field(default_factory=list)
    way: str = ""
    session: str = ""


@dataclass(frozen=True)
class Answer:
    """The new tokens of each prompt. first_token_seconds: to the first one of all, where the engine tells. told: counts that
    are worth reporting."""

    tokens: list[list[int]]
    first_token_seconds: float | None = None
    told: dict[str, Any] = field(default_factory=dict)


class Engine(ABC):
    """One engine with one model."""

    @abstractmethod
    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Load the model; what is worth reporting of the settings in force."""

    @abstractmethod
    def generate(self, ask: Ask) -> Answer:
        """Decode. The caller takes the time."""

    def measure(self) -> dict[str, float]:
        """What a worker that decodes nothing finds out: bytes per second by kind of access."""
        raise NotImplementedError("this engine decodes")

    packages: Sequence[str] = ()
    """Distributions whose versions are reported."""

    def versions(self) -> dict[str, str]:
        """Versions of the engine's packages."""
        return {name: metadata.version(name) for name in self.packages}


def cut(tokens: Sequence[int], ask: Ask) -> list[int]:
    """The tokens that count: at most `new_tokens`, and none after an end token, which itself belongs to the answer."""
    kept = [int(token) for token in tokens[: ask.new_tokens]]
    end = next((place for place, token in enumerate(kept) if token in ask.ends), len(kept))
    return kept[: end + 1]


def serve(engine: Engine) -> None:
    """Answer the lines of standard input until it ends. What libraries print goes to standard error."""
    _die_with_parent()
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        operation = request.pop("op")
        try:
            reply = _answer(engine, operation, request)
        except Exception as error:
            traceback.print_exc()
            reason = " ".join(str(error).split())
            reply = {"error": f"{type(error).__name__}: {reason}" if reason else type(error).__name__}
        output.write(json.dumps(reply) + "\n")
        output.flush()
        if operation == "stop":
            return


def _die_with_parent() -> None:
    """A process that stands still would outlive a race that was killed. Linux alone knows how to ask for this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _answer(engine: Engine, operation: str, request: dict[str, Any]) -> dict[str, Any]:
    if operation == "load":
        start = time.perf_counter()
        settings = engine.load(request["settings"])
        return {"versions": engine.versions(), "settings": settings, "seconds": time.perf_counter() - start}
    if operation == "generate":
        ask = Ask(**request)
        start = time.perf_counter()
        answer = engine.generate(ask)
        seconds = time.perf_counter() - start
        return {
            "tokens": [cut(tokens, ask) for tokens in answer.tokens],
            "seconds": seconds,
            "first_token_seconds": answer.first_token_seconds,
            "told": answer.told,
        }
    if operation == "measure":
        return dict(engine.measure())
    if operation == "stop":
        return {}
    raise ValueError(f"there is no operation {operation!r}")
