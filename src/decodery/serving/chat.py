"""The answers of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from decodery.serving.shapes import DONE, AnswerShape, Piece, frame, usage

if TYPE_CHECKING:
    from decodery.replies import Reply


class ChatShape(AnswerShape):
    """Choices with messages; in a stream with what is added to them."""

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        choices = []
        for place, reply in enumerate(replies):
            piece = Piece(place, reply.text, reply.token_ids, reply.logprobs or [])
            message = {"role": "assistant", "content": reply.text, "refusal": None}
            choices.append({"index": place, "message": message, **self._end(piece, reply.finish_reason)})
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
            delta = {"content": piece.visible}
            out.append(self._chunk([{"index": piece.text, "delta": delta, **self._end(piece, None)}], **more))
        if piece.ended:
            reply = self.reply_of(piece.text)
            told = {} if reply is None else {"decodery": self.decoding.told([reply])}
            end = {"index": piece.text, "delta": {}, "logprobs": None, "finish_reason": piece.ended}
            out.append(self._chunk([end], **told))
        return out

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
