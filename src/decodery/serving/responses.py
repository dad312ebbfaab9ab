"""The answers of /v1/responses: one text, told by the events of OpenAI's newer interface."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from decodery.serving.decoding import Decoding
from decodery.serving.failures import Failure
from decodery.serving.shapes import AnswerShape, Piece, frame, usage
from decodery.tools import CallReader

if TYPE_CHECKING:
    from decodery.replies import Reply


@dataclass
class _Item:
    """A part of the output: a message, or the call of a function where it has a name. text: of it, or its arguments."""

    id: str
    index: int
    name: str = ""
    call: str = ""
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    status: str = "in_progress"

    def told(self) -> dict[str, Any]:
        """It, as OpenAI writes it."""
        if self.name:
            told = {"type": "function_call", "id": self.id, "call_id": self.call, "name": self.name}
            return {**told, "arguments": self.text, "status": self.status}
        content = [] if self.status == "in_progress" else [self.part()]
        return {"type": "message", "id": self.id, "status": self.status, "role": "assistant", "content": content}

    def part(self) -> dict[str, Any]:
        """The text of a message."""
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}


class ResponseShape(AnswerShape):
    """A response with one message; where there are tools, with messages and calls as they stand in the text. Nothing is stored,
    so no later request can name it."""

    def __init__(self, decoding: Decoding):
        super().__init__(decoding)
        self._sequence = 0
        self._items: list[_Item] = []
        self._events: list[bytes] = []
        """What is to be told next."""
        self._reader = CallReader(self._said, self._called, self._argued)

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        [reply] = replies
        self.piece(Piece(0, reply.text, reply.token_ids, reply.logprobs or []))
        return self._ended(reply)

    def opening(self) -> list[bytes]:
        self._tell("response.created", response=self._response("in_progress"))
        self._tell("response.in_progress", response=self._response("in_progress"))
        if self.asked.tools is None:
            self._open(_Item(f"msg_{self.decoding.number}", 0))
        return self._told()

    def piece(self, piece: Piece) -> list[bytes]:
        if self.asked.tools is not None:
            self._reader.read(piece.visible)
        else:
            logprobs = self._logprobs(piece)
            if piece.visible or logprobs:
                self._said(piece.visible, logprobs)
        return self._told()

    def closing(self, replies: Sequence[Reply]) -> list[bytes]:
        [reply] = replies
        response = self._ended(reply)
        self._tell(f"response.{response['status']}", response=response)
        return self._told()

    def failed(self, failure: Failure) -> list[bytes]:
        response = self._response("failed")
        response["error"] = {"code": failure.code or "server_error", "message": failure.message}
        return [self._event("response.failed", response=response)]

    # The output

    def _said(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> None:
        if not self._items or self._items[-1].name:
            self._close("completed")
            own = f"_{len(self._items)}" if self._items else ""
            self._open(_Item(f"msg_{self.decoding.number}{own}", len(self._items)))
        message = self._items[-1]
        message.text += text
        message.logprobs += logprobs
        self._tell("response.output_text.delta", **self._place(message), delta=text, logprobs=list(logprobs))

    def _called(self, name: str) -> None:
        self._close("completed")
        self._open(_Item(f"fc_{uuid.uuid4().hex[:24]}", len(self._items), name, f"call_{uuid.uuid4().hex[:24]}"))

    def _argued(self, more: str) -> None:
        call = self._items[-1]
        call.text += more
        self._tell("response.function_call_arguments.delta", item_id=call.id, output_index=call.index, delta=more)

    def _open(self, item: _Item) -> None:
        self._items.append(item)
        self._tell("response.output_item.added", output_index=item.index, item=item.told())
        if not item.name:
            self._tell("response.content_part.added", **self._place(item), part=item.part())

    def _close(self, status: str) -> None:
        """End the present item, if there is one."""
        if not self._items or self._items[-1].status != "in_progress":
            return
        item = self._items[-1]
        item.status = status
        if item.name:
            place = {"item_id": item.id, "output_index": item.index, "name": item.name}
            self._tell("response.function_call_arguments.done", **place, arguments=item.text)
        else:
            self._tell("response.output_text.done", **self._place(item), text=item.text, logprobs=item.logprobs)
            self._tell("response.content_part.done", **self._place(item), part=item.part())
        self._tell("response.output_item.done", output_index=item.index, item=item.told())

    def _place(self, message: _Item) -> dict[str, Any]:
        return {"item_id": message.id, "output_index": message.index, "content_index": 0}

    def _logprobs(self, piece: Piece) -> list[dict[str, Any]]:
        """The log probabilities of a piece."""
        told = self.token_logprobs(piece) if self.asked.logprobs is not None else []
        for entry in told:
            for one in (entry, *entry["top_logprobs"]):
                one["bytes"] = one["bytes"] or []  # which OpenAI's clients want here
        return told

    def _tell(self, kind: str, **more: Any) -> None:
        self._events.append(self._event(kind, **more))

    def _told(self) -> list[bytes]:
        """The events since it was last asked."""
        told, self._events = self._events, []
        return told

    def _event(self, kind: str, **more: Any) -> bytes:
        self._sequence += 1
        return frame({"type": kind, "sequence_number": self._sequence - 1, **more}, event=kind)

    def _response(self, status: str) -> dict[str, Any]:
        own, settings, tools = self.asked.own, self.asked.settings, self.asked.tools
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
            "parallel_tool_calls": tools is not None and tools.parallel,
            "previous_response_id": None,
            "store": False,
            "temperature": self._setting("temperature"),
            "text": settings.get("text", {"format": {"type": "text"}}),
            "tool_choice": "none" if tools is None else own.get("tool_choice", "auto"),
            "tools": own.get("tools", []),
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
        self._reader.read("", last=True)
        if not self._items:
            self._said("")
        self._close(status)
        return {
            **self._response(status),
            "incomplete_details": None if complete else {"reason": "max_output_tokens"},
            "output": [item.told() for item in self._items],
            "usage": {
                "input_tokens": counted["prompt_tokens"],
                "input_tokens_details": counted["prompt_tokens_details"],
                "output_tokens": counted["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counted["total_tokens"],
            },
            "decodery": self.decoding.told([reply]),
        }
