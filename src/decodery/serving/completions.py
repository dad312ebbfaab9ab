"""The answers of /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from decodery.serving.decoding import Decoding
from decodery.serving.shapes import DONE, LEAST, AnswerShape, Piece, frame, usage

if TYPE_CHECKING:
    from decodery.engine.events import TokenLogprobs
    from decodery.engine.request import Request
    from decodery.replies import Reply


class CompletionShape(AnswerShape):
    """Choices with texts, prompt by prompt; with `echo` each begins with its prompt."""

    def __init__(self, decoding: Decoding):
        super().__init__(decoding)
        self._told: dict[int, int] = {}
        """Text -> characters of its tokens that have been told of, for the offsets of the next ones."""

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        choices = []
        for place, reply in enumerate(replies):
            piece = Piece(place, reply.text, reply.token_ids, reply.logprobs or [], first=True)
            prompt = list(reply.prompt_token_ids)
            choices.append(self._choice(piece, reply.finish_reason, prompt, reply.prompt_logprobs))
        told = {"id": self._id, **self.head("text_completion"), "choices": choices, "usage": usage(replies)}
        return {**told, "decodery": self.decoding.told(replies)}

    def opening(self) -> list[bytes]:
        return []

    def piece(self, piece: Piece) -> list[bytes]:
        request = self._request(piece.text)
        if piece.first and self.asked.settings.get("echo"):
            piece.visible = request.prompt_text + piece.visible
        told: dict[str, Any] = {}
        if piece.ended and (reply := self.reply_of(piece.text)) is not None:
            told["decodery"] = self.decoding.told([reply])
        elif not (piece.visible or piece.logprobs or (self.asked.token_ids and piece.token_ids) or piece.ended):
            return []
        return [
            self._chunk([self._choice(piece, piece.ended or None, request.prompt, request.prompt_logprobs)], **told)
        ]

    def closing(self, replies: Sequence[Reply]) -> list[bytes]:
        last = [self._chunk([], usage=usage(replies))] if self.asked.include_usage else []
        return [*last, DONE]

    @property
    def _id(self) -> str:
        return f"cmpl-{self.decoding.number}"

    def _request(self, text: int) -> Request:
        prepared = self.decoding.job.prepared
        assert prepared is not None
        return next(r for r, _ in prepared.entries if r.number <= text < r.number + r.n)

    def _choice(
        self, piece: Piece, reason: str | None, prompt: Sequence[int], before: Sequence[TokenLogprobs] | None
    ) -> dict[str, Any]:
        logprobs = None if self.asked.logprobs is None else self._logprobs(piece, prompt, before)
        told = {"index": piece.text, "text": piece.visible, "logprobs": logprobs, "finish_reason": reason}
        if self.asked.token_ids:
            told["token_ids"] = piece.token_ids
            if piece.first:
                told["prompt_token_ids"] = list(prompt)
        return told

    def _logprobs(self, piece: Piece, prompt: Sequence[int], before: Sequence[TokenLogprobs] | None) -> dict[str, Any]:
        """Of each token, and before those of a text that begins with its prompt, of each of that; its first token has none."""
        ids: list[int] = list(piece.token_ids[: len(piece.logprobs)])
        entries: list[TokenLogprobs | None] = list(piece.logprobs)
        if piece.first and self.asked.settings.get("echo"):
            ids, entries = [*prompt, *ids], [None, *(before or ()), *entries]
        tokens = [self.token(token)["token"] for token in ids]
        offset = self._told.get(piece.text, 0)
        offsets = []
        for said in tokens:
            offsets.append(offset)
            offset += len(said)
        self._told[piece.text] = offset
        return {
            "tokens": tokens,
            "token_logprobs": [None if entry is None else max(entry.raw, LEAST) for entry in entries],
            "top_logprobs": [self._top(token, entry) for token, entry in zip(tokens, entries, strict=True)]
            if self.asked.logprobs
            else None,
            "text_offset": offsets,
        }

    def _top(self, said: str, entry: TokenLogprobs | None) -> dict[str, float] | None:
        """The alternatives by their texts, the likeliest first; and the token itself. Of alternatives that say the same, the
        likeliest counts."""
        if entry is None:
            return None
        top: dict[str, float] = {}
        for token, value in entry.top:
            top.setdefault(self.token(token)["token"], max(value, LEAST))
        top.setdefault(said, max(entry.raw, LEAST))
        return top

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        usage_so_far = {"usage": None} if self.asked.include_usage else {}
        return frame({"id": self._id, **self.head("text_completion"), "choices": choices, **usage_so_far, **more})
