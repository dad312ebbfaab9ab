"""The answers of /v1/decodery/events: what happened, event by event, as the engine tells it.

docs/serving.md ("The stream of events") lists the events and their fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from decodery.engine.events import Branched, Drafted, Finished, Inserted, Token, Unmasked
from decodery.models.kinds import Kind
from decodery.serving.decoding import Decoding
from decodery.serving.failures import Failure
from decodery.serving.shapes import DONE, LEAST, StreamShape, frame, usage

if TYPE_CHECKING:
    from decodery.replies import Reply
    from decodery.serving.engine_thread import Heard

NUMBERS = (
    "prompt_tokens",
    "new_tokens",
    "forwards",
    "rounds",
    "drafted",
    "accepted",
    "bonus",
    "first_token_seconds",
    "seconds",
    "queued_seconds",
    "tokens_per_second",
)
"""What the end of a text tells of `Statistics`."""
ROOT = -1
"""The parent of the nodes of a draft that follow the last committed token."""


@dataclass
class Followed:
    """What must be kept of one text to tell how its tokens came.

    draft: the last one that was sent to be verified; None once the model's own token has ended its round. node: of it, the last
    accepted one. cells: of a canvas or of a text that grows,
    offset -> token. step_of: of each cell. read: offsets before that have become text. grows: whether
    cells were inserted.
    """

    draft: Drafted | None = None
    node: int = ROOT
    cells: dict[int, int] = field(default_factory=dict)
    step_of: dict[int, int] = field(default_factory=dict)
    read: int = 0
    grows: bool = False

    def came(self, event: Token) -> dict[str, Any]:
        """How a token came: as a cell of a canvas or of a text that grew, from a draft, as the model's own token after one, or
        plainly."""
        if self.cells:
            return {"came": "inserted" if self.grows else "canvas", **self._cell(event.token_id)}
        if event.from_draft:
            return {"came": "drafted", "node": self._accepted(event.token_id)}
        bonus, self.draft = self.draft is not None, None
        return {"came": "bonus" if bonus else "plain"}

    def begin(self, draft: Drafted) -> None:
        """A draft is verified."""
        self.draft, self.node = draft, ROOT

    def fill(self, step: Unmasked) -> None:
        """A step of a canvas was taken."""
        for offset, token in zip(step.offsets, step.tokens, strict=True):
            self.cells[offset], self.step_of[offset] = token, step.step

    def insert(self, step: Inserted) -> None:
        """A token was inserted: the cells from there on move one to the right."""
        self.grows = True
        for cells, value in ((self.cells, step.token), (self.step_of, step.step)):
            moved = {offset + (offset >= step.offset): kept for offset, kept in cells.items()}
            cells.clear()
            cells.update(moved | {step.offset: value})

    def _accepted(self, token: int) -> int | None:
        """The node of the draft that an accepted token is: the child of the one before it that says so."""
        if self.draft is None:
            return None
        nodes = enumerate(zip(self.draft.tokens, self.draft.parents, strict=True))
        found = next((node for node, said in nodes if said == (token, self.node)), None)
        if found is not None:
            self.node = found
        return found

    def _cell(self, token: int) -> dict[str, Any]:
        """The cell that has become text: the next one that holds the token. Those between hold pads, which are no text."""
        last = max(self.cells) + 1
        offset = next((offset for offset in range(self.read, last) if self.cells.get(offset) == token), None)
        if offset is None:
            return {"offset": None, "step": None}
        self.read = offset + 1
        return {"offset": offset, "step": self.step_of[offset]}


class EventShape(StreamShape):
    """Every event of the texts of one prompt, with the time at which it came."""

    def __init__(self, decoding: Decoding):
        super().__init__(decoding)
        self._texts: dict[int, Followed] = {}

    def opening(self) -> list[bytes]:
        prepared = self.decoding.job.prepared
        assert prepared is not None
        request, method = prepared.entries[0]
        return [
            self._event(
                "begun",
                model=self.decoding.model,
                method=method.spec(),
                exactness=str(method.exactness),
                seed=request.settings.seed,
                order=list(request.law.order),
                texts=self.asked.n,
                canvas=Kind.NEXT_TOKEN not in self.lm.network.kinds,
                prompt_tokens=len(request.prompt),
            )
        ]

    def tell(self, bundle: Sequence[Heard]) -> list[bytes]:
        return [self._told(heard) for heard in bundle]

    def closing(self, replies: Sequence[Reply]) -> list[bytes]:
        return [self._event("done", usage=usage(replies)), DONE]

    def failed(self, failure: Failure) -> list[bytes]:
        return [self._event("error", **failure.as_dict()), DONE]

    def _told(self, heard: Heard) -> bytes:
        event = heard.event
        when = {"text": event.request, "seconds": round(heard.seconds, 6), "pass": heard.passes}
        text = self._texts.setdefault(event.request, Followed())
        if isinstance(event, Drafted):
            text.begin(event)
            said = [self._said(token) for token in event.tokens]
            return self._event("drafted", **when, tokens=said, token_ids=event.tokens, parents=event.parents)
        if isinstance(event, Branched):
            said = [self._said(token) for token in event.tokens]
            scores = [None if score is None else max(score, LEAST) for score in event.scores]
            nodes = {"tokens": said, "token_ids": event.tokens, "parents": event.parents, "scores": scores}
            return self._event("branched", **when, **nodes)
        if isinstance(event, Unmasked):
            text.fill(event)
            said = [self._said(token) for token in event.tokens]
            more = {"step": event.step, "offsets": event.offsets, "length": event.length}
            return self._event("unmasked", **when, **more, tokens=said, token_ids=event.tokens)
        if isinstance(event, Inserted):
            text.insert(event)
            more = {"step": event.step, "offset": event.offset, "token": self._said(event.token)}
            return self._event("inserted", **when, **more, token_id=event.token)
        if isinstance(event, Finished):
            reply = self.reply_of(event.request)
            told = None if reply is None else self.decoding.told([reply])
            numbers = {name: getattr(event.statistics, name) for name in NUMBERS}
            return self._event(
                "finished", **when, visible=event.text, reason=event.reason, statistics=numbers, decodery=told
            )
        token = {"index": event.index, "token_id": event.token_id, "token": self._said(event.token_id)}
        return self._event(
            "token", **when, **token, visible=event.text, **text.came(event), logprobs=self._logprobs(event)
        )

    def _logprobs(self, event: Token) -> dict[str, Any] | None:
        entry = event.logprobs
        if entry is None:
            return None
        top = [[self._said(token), token, max(value, LEAST)] for token, value in entry.top]
        return {"raw": max(entry.raw, LEAST), "processed": max(entry.processed, LEAST), "top": top}

    def _said(self, token: int) -> str:
        said: str = self.token(token)["token"]
        return said

    def _event(self, kind: str, **more: Any) -> bytes:
        return frame({"type": kind, **more}, event=kind)
