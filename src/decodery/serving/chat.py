"""The answers of /v1/chat/completions."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from decodery.serving.shapes import DONE, AnswerShape, Piece, frame, usage
from decodery.tools import CallReader, read_calls

if TYPE_CHECKING:
    from decodery.replies import Reply
    from decodery.serving.decoding import Decoding


def _call(**function: str) -> dict[str, Any]:
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


class _Deltas:
    """Reads the calls of a text, as what is added to its message. count: calls so far."""

    def __init__(self) -> None:
        self.count = 0
        self._found: list[dict[str, Any]] = []
        self._reader = CallReader(self._said, self._called, self._argued)

    def take(self, text: str, last: bool = False) -> list[dict[str, Any]]:
        """What more of the text adds."""
        self._found = []
        self._reader.read(text, last)
        return self._found

    def _said(self, text: str) -> None:
        self._found.append({"content": text})

    def _called(self, name: str) -> None:
        self._found.append({"tool_calls": [{"index": self.count, **_call(name=name, arguments="")}]})
        self.count += 1

    def _argued(self, more: str) -> None:
        self._found.append({"tool_calls": [{"index": self.count - 1, "function": {"arguments": more}}]})


class ChatShape(AnswerShape):
    """Choices with messages; in a stream with what is added to them."""

    def __init__(self, decoding: Decoding):
        super().__init__(decoding)
        self._readers: dict[int, _Deltas] = {}
        """By text, where there are tools."""

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        choices = []
        for place, reply in enumerate(replies):
            piece = Piece(place, reply.text, reply.token_ids, reply.logprobs or [])
            message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
            reason: str | None = reply.finish_reason
            if self.asked.tools is not None:
                content, calls = read_calls(reply.text)
                listed = [_call(name=call.name, arguments=call.arguments) for call in calls]
                message |= {"content": content or None, "tool_calls": listed} if calls else {"content": content}
                reason = self._reason(reason, bool(calls))
            choices.append({"index": place, "message": message, **self._end(piece, reason)})
        told: dict[str, Any] = {
            "id": self._id,
            **self.head("chat.completion"),
            "choices": choices,
            "usage": usage(replies),
        }
        if self.asked.token_ids:
            told["prompt_token_ids"] = list(replies[0].prompt_token_ids)
        return {**told, "decodery": self.decoding.told(replies)}

    def opening(self) -> list[bytes]:
        role = {"role": "assistant", "content": ""}
        return [
            self._chunk([{"index": i, "delta": role, "logprobs": None, "finish_reason": None}]) for i in self._choices
        ]

    def piece(self, piece: Piece) -> list[bytes]:
        out = []
        if piece.visible or piece.logprobs or (self.asked.token_ids and piece.token_ids):
            more: dict[str, Any] = {}
            if self.asked.token_ids and piece.first and (prompt := self._prompt(piece.text)) is not None:
                more["prompt_token_ids"] = prompt
            deltas = self._deltas(piece)
            out += [
                self._chunk([{"index": piece.text, "delta": delta, **self._end(own, None)}], **more)
                for delta, own in zip(deltas, [piece, *[Piece(piece.text)] * (len(deltas) - 1)], strict=True)
            ]
        if piece.ended:
            reply = self.reply_of(piece.text)
            told = {} if reply is None else {"decodery": self.decoding.told([reply])}
            reader = self._readers.get(piece.text)
            reason = self._reason(piece.ended, reader is not None and reader.count > 0)
            if reader is not None and (rest := reader.take("", last=True)):
                out += [
                    self._chunk([{"index": piece.text, "delta": delta, "logprobs": None, "finish_reason": None}])
                    for delta in rest
                ]
            end = {"index": piece.text, "delta": {}, "logprobs": None, "finish_reason": reason}
            out.append(self._chunk([end], **told))
        return out

    def _deltas(self, piece: Piece) -> list[dict[str, Any]]:
        """What is added to a message; at least one thing, since log probabilities stand beside it."""
        if self.asked.tools is None:
            return [{"content": piece.visible}]
        reader = self._readers.setdefault(piece.text, _Deltas())
        return reader.take(piece.visible) or [{"content": ""}]

    def _reason(self, reason: str | None, calls: bool) -> str | None:
        """Why a text has ended, which has calls or not. As at OpenAI, a function that had to be called is no reason."""
        tools = self.asked.tools
        return "tool_calls" if calls and reason == "stop" and tools is not None and not tools.named else reason

    def closing(self, replies: Sequence[Reply]) -> list[bytes]:
        last = [self._chunk([], usage=usage(replies))] if self.asked.include_usage else []
        return [*last, DONE]

    @property
    def _id(self) -> str:
        return f"chatcmpl-{self.decoding.number}"

    @property
    def _choices(self) -> range:
        return range(self.asked.n)

    def _end(self, piece: Piece, reason: str | None) -> dict[str, Any]:
        """Log probabilities, reason, and token ids where they are wanted."""
        wanted = self.asked.logprobs is not None
        told: dict[str, Any] = {
            "logprobs": {"content": self.token_logprobs(piece), "refusal": None} if wanted else None,
            "finish_reason": reason,
        }
        return {**told, "token_ids": piece.token_ids} if self.asked.token_ids else told

    def _prompt(self, text: int) -> list[int] | None:
        prepared = self.decoding.job.prepared
        return None if prepared is None or text else list(prepared.entries[0][0].prompt)

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        usage_so_far = {"usage": None} if self.asked.include_usage else {}
        head = {"id": self._id, **self.head("chat.completion.chunk")}
        return frame({**head, "choices": choices, **usage_so_far, **more})
