"""What the answers of OpenAI's routes have in common: log probabilities, usage, and how a text is told piece by piece."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from decodery.engine.events import Finished, Token
from decodery.engine.spelling import REPLACEMENT, Spelling
from decodery.replies import replies_of
from decodery.serving.failures import Failure

if TYPE_CHECKING:
    from decodery.engine.events import TokenLogprobs
    from decodery.replies import Reply
    from decodery.serving.decoding import Decoding
    from decodery.serving.engine_thread import Heard

LEAST = -9999.0
"""In place of minus infinity, which JSON does not have; as at OpenAI and vLLM."""


@dataclass
class Piece:
    """What has come of a text since the last time. ended: "stop" or "length"; empty: it goes on, or has failed."""

    text: int
    visible: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    first: bool = False
    ended: str = ""


def json_text(value: Any) -> str:
    """JSON in ASCII, in which numbers that JSON does not have are null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def frame(data: Any, event: str = "") -> bytes:
    """One server-sent event."""
    said = data if isinstance(data, str) else json_text(data)
    return (f"event: {event}\n" if event else "").encode() + f"data: {said}\n\n".encode()


DONE = frame("[DONE]")


def usage(replies: Sequence[Reply]) -> dict[str, Any]:
    """Tokens of prompts and texts. A prompt counts once, however many texts it has; cached tokens are those whose keys and
    values were there already."""
    prompts = [reply for reply in replies if reply.output == 0]
    asked = sum(len(reply.prompt_token_ids) for reply in prompts)
    given = sum(len(reply.token_ids) for reply in replies)
    cached = sum(min(reply.stats.shared_rows, len(reply.prompt_token_ids)) for reply in prompts)
    return {
        "prompt_tokens": asked,
        "completion_tokens": given,
        "total_tokens": asked + given,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class StreamShape(ABC):
    """How one route tells what is decoded as it comes: as frames of a stream."""

    def __init__(self, decoding: Decoding):
        self.decoding, self.asked, self.lm = decoding, decoding.asked, decoding.lm

    @abstractmethod
    def opening(self) -> list[bytes]:
        """Frames before anything is decoded."""

    @abstractmethod
    def tell(self, bundle: Sequence[Heard]) -> list[bytes]:
        """Frames of what has come."""

    @abstractmethod
    def closing(self, replies: Sequence[Reply]) -> list[bytes]:
        """Frames after the last text has ended."""

    def failed(self, failure: Failure) -> list[bytes]:
        """Frames of an error after the stream has begun."""
        return [frame(failure.as_dict()), DONE]

    def head(self, kind: str) -> dict[str, Any]:
        """What every object of an answer begins with."""
        decoding = self.decoding
        network = self.lm.network
        return {
            "object": kind,
            "created": decoding.created,
            "model": decoding.model,
            "system_fingerprint": f"decodery-{network.path}-{str(network.dtype).removeprefix('torch.')}",
        }

    def reply_of(self, text: int) -> Reply | None:
        """The reply of one text, where its request is over."""
        prepared = self.decoding.job.prepared
        assert prepared is not None
        for request, method in prepared.entries:
            if request.number <= text < request.number + request.n and request.finish_reason is not None:
                return replies_of(request, method)[text - request.number]
        return None

    # Log probabilities

    def token(self, token: int) -> dict[str, Any]:
        """What a token says: its text, and the bytes of that where they are known."""
        said = self.lm.tokenizer.decode([token])
        byte = Spelling.of(self.lm.tokenizer).byte(token)
        known = list(said.encode("utf-8", "replace")) if REPLACEMENT not in said else None
        return {"token": said, "bytes": [byte] if byte is not None else known}

    def token_logprobs(self, piece: Piece) -> list[dict[str, Any]]:
        """Of each token, as chats and responses tell it. The log probabilities are those of the model's own scores."""
        return [
            {
                **self.token(token),
                "logprob": max(entry.raw, LEAST),
                "top_logprobs": [{**self.token(other), "logprob": max(value, LEAST)} for other, value in entry.top],
            }
            for token, entry in zip(piece.token_ids, piece.logprobs, strict=False)
        ]


class AnswerShape(StreamShape):
    """How one of OpenAI's routes tells what is decoded: as a whole, or piece by piece."""

    def __init__(self, decoding: Decoding):
        super().__init__(decoding)
        self._begun: set[int] = set()
        """Texts that something has come of."""

    @abstractmethod
    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """The answer, once all is there."""

    @abstractmethod
    def piece(self, piece: Piece) -> list[bytes]:
        """Frames of what has come of one text."""

    def tell(self, bundle: Sequence[Heard]) -> list[bytes]:
        return [one for piece in pieces(bundle, self._begun) for one in self.piece(piece)]


def pieces(bundle: Sequence[Heard], begun: set[int]) -> list[Piece]:
    """Events as pieces, one for each text that something came of. begun: texts that something has come of before; those of
    the bundle are added."""
    found: dict[int, Piece] = {}
    for event in (heard.event for heard in bundle):
        piece = found.setdefault(event.request, Piece(event.request, first=event.request not in begun))
        begun.add(event.request)
        if isinstance(event, Token):
            piece.visible += event.text
            piece.token_ids.append(event.token_id)
            if event.logprobs is not None:
                piece.logprobs.append(event.logprobs)
        elif isinstance(event, Finished):
            piece.visible += event.text
            piece.ended = event.reason if event.reason in ("stop", "length") else ""
    return list(found.values())


async def frames(shape: StreamShape) -> AsyncIterator[bytes]:
    """A whole stream. A text that ends in an error is told of once, in the end."""
    for one in shape.opening():
        yield one
    async for bundle in shape.decoding.job.events():
        if out := shape.tell(bundle):
            yield b"".join(out)
    try:
        last = shape.closing(await shape.decoding.replies())
    except Failure as failure:
        last = shape.failed(failure)
    yield b"".join(last)
