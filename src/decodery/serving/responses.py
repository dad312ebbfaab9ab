"""The answers of /v1/responses: one text, told by the events of OpenAI's newer interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from decodery.serving.decoding import Decoding
from decodery.serving.failures import Failure
from decodery.serving.shapes import AnswerShape, Piece, frame, usage

if TYPE_CHECKING:
    from decodery.replies import Reply


class ResponseShape(AnswerShape):
    """A response with one message. Nothing is stored, so no later request can name it."""

    def __init__(self, decoding: Decoding):
        super().__init__(decoding)
        self._sequence = 0
        self._text = ""
        self._logprobs: list[dict[str, Any]] = []

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        [reply] = replies
        self._take(Piece(0, reply.text, reply.token_ids, reply.logprobs or []))
        return self._ended(reply)

    def opening(self) -> list[bytes]:
        return [
            self._event("response.created", response=self._response("in_progress")),
            self._event("response.in_progress", response=self._response("in_progress")),
            self._event("response.output_item.added", output_index=0, item=self._message("in_progress")),
            self._event("response.content_part.added", **self._place, part=self._part("", [])),
        ]

    def piece(self, piece: Piece) -> list[bytes]:
        told = self._take(piece)
        if not piece.visible and not told:
            return []
        return [self._event("response.output_text.delta", **self._place, delta=piece.visible, logprobs=told)]

    def closing(self, replies: Sequence[Reply]) -> list[bytes]:
        [reply] = replies
        response = self._ended(reply)
        part = self._part(self._text, self._logprobs)
        return [
            self._event("response.output_text.done", **self._place, text=self._text, logprobs=self._logprobs),
            self._event("response.content_part.done", **self._place, part=part),
            self._event("response.output_item.done", output_index=0, item=response["output"][0]),
            self._event(f"response.{response['status']}", response=response),
        ]

    def failed(self, failure: Failure) -> list[bytes]:
        response = self._response("failed")
        response["error"] = {"code": failure.code or "server_error", "message": failure.message}
        return [self._event("response.failed", response=response)]

    @property
    def _item(self) -> str:
        return f"msg_{self.decoding.number}"

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _take(self, piece: Piece) -> list[dict[str, Any]]:
        """Add a piece to the text; its log probabilities."""
        told = self.token_logprobs(piece) if self.asked.logprobs is not None else []
        for entry in told:
            for one in (entry, *entry["top_logprobs"]):
                one["bytes"] = one["bytes"] or []  # which OpenAI's clients want here
        self._text += piece.visible
        self._logprobs += told
        return told

    def _event(self, kind: str, **more: Any) -> bytes:
        self._sequence += 1
        return frame({"type": kind, "sequence_number": self._sequence - 1, **more}, event=kind)

    def _part(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _message(self, status: str, content: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        return {
            "type": "message",
            "id": self._item,
            "status": status,
            "role": "assistant",
            "content": list(content),
        }

    def _response(self, status: str) -> dict[str, Any]:
        own, settings = self.asked.own, self.asked.settings
        head = self.head("response")
        return {
            "id": f"resp_{self.decoding.number}",
            "object": "response",
            "created_at": head["created"],
            "model": head["model"],
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": own.get("instructions"),
            "max_output_tokens": settings.get("max_output_tokens"),
            "metadata": {},
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": self._setting("temperature"),
            "text": settings.get("text", {"format": {"type": "text"}}),
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": own.get("top_logprobs", 0),
            "top_p": self._setting("top_p"),
            "truncation": "disabled",
            "usage": None,
            "user": own.get("user"),
        }

    def _setting(self, name: str) -> Any:
        """What was decoded with."""
        prepared = self.decoding.job.prepared
        assert prepared is not None
        return getattr(prepared.entries[0][0].settings, name)

    def _ended(self, reply: Reply) -> dict[str, Any]:
        complete = reply.finish_reason == "stop"
        status = "completed" if complete else "incomplete"
        counted = usage([reply])
        part = self._part(self._text, self._logprobs)
        return {
            **self._response(status),
            "incomplete_details": None if complete else {"reason": "max_output_tokens"},
            "output": [self._message(status, [part])],
            "usage": {
                "input_tokens": counted["prompt_tokens"],
                "input_tokens_details": counted["prompt_tokens_details"],
                "output_tokens": counted["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counted["total_tokens"],
            },
            "decodery": self.decoding.told([reply]),
        }
