"""What a request gives back: a reply when it is over, or a stream of events while it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decodery.engine.events import Event, TokenLogprobs
    from decodery.engine.method import Exactness, Method
    from decodery.engine.request import Request
    from decodery.engine.scheduler import Scheduler
    from decodery.engine.statistics import Statistics


@dataclass(frozen=True)
class Reply:
    """One text that was asked for, with what is to be told of it. For `n` texts of a prompt there are `n` replies in order,
    whether they are independent samples or were decided together.

    text: the visible output (with the prompt before it where `echo` was set). token_ids: the new tokens, an end token
    included. finish_reason: "stop", "length", "cancelled" or "error". seed: the one used, also where none was given.
    order: the steps of the law that were switched on, in order. logprobs: one per new token where asked for.
    prompt_logprobs: of prompt tokens 1, 2, … where echo and logprobs were set. error: what ended the request, if so.
    output: its number among the texts of its prompt. Where the method decides these together: weight: how much the text counts
    beside the others, as the method says (a probability, a share of votes, an importance weight); score: what the method ranks
    it by, where it does; and stats are those of all of them, which had their forwards in common. Of independent samples, which
    all count the same, weight and score are None.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    exactness: Exactness
    stats: Statistics
    events: tuple[Event, ...] = field(repr=False)
    method: str
    model: str
    seed: int
    prompt_token_ids: tuple[int, ...] = field(repr=False)
    order: tuple[str, ...] = ()
    logprobs: list[TokenLogprobs] | None = field(default=None, repr=False)
    prompt_logprobs: list[TokenLogprobs] | None = field(default=None, repr=False)
    error: Exception | None = None
    output: int = 0
    weight: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Prepared:
    """Requests that are checked and not begun, each with its method, in the order of their replies."""

    entries: tuple[tuple[Request, Method], ...]

    @property
    def over(self) -> bool:
        """Whether nothing more is to be decoded."""
        return all(request.finish_reason is not None for request, _ in self.entries)

    def submit(self, scheduler: Scheduler) -> None:
        """Start them all, from the thread that owns the scheduler."""
        for request, method in self.entries:
            scheduler.submit(request, method)

    def cancel(self, scheduler: Scheduler) -> None:
        """End what still runs; what it has committed stays."""
        for request, _ in self.entries:
            scheduler.cancel(request)

    def replies(self) -> list[Reply]:
        """The replies of all. What never started counts as cancelled; what still runs must be over or cancelled before."""
        for request, _ in self.entries:
            if request.finish_reason is None:
                request.finish("cancelled")
        return [reply for entry in self.entries for reply in replies_of(*entry)]


def replies_of(request: Request, method: Method) -> list[Reply]:
    """The replies of a request that is over: one for each of its texts."""
    settings = request.settings
    assert settings.seed is not None
    wanted = settings.logprobs is not None
    replies = []
    for place, output in enumerate(request.outputs):
        assert output.finish_reason is not None
        number = request.sample + place
        reply = Reply(
            text=(request.prompt_text if settings.echo else "") + output.text,
            token_ids=output.new_tokens,
            finish_reason=output.finish_reason,
            exactness=method.exactness,
            stats=request.statistics,
            events=tuple(event for event in request.events if event.output == number),
            method=method.spec(),
            model=request.network.name,
            seed=settings.seed,
            prompt_token_ids=request.prompt,
            order=output.law.order,
            logprobs=output.logprobs if wanted else None,
            prompt_logprobs=request.prompt_logprobs if wanted and settings.echo else None,
            error=request.error,
            output=number,
            weight=output.weight,
            score=output.score,
        )
        replies.append(reply)
    return replies


class Stream(Iterator["Event"]):
    """The events of one `LanguageModel.stream` call, of all its requests interleaved; decoding goes on as they are read."""

    def __init__(self, events: Generator[Event], conclude: Callable[[], list[Reply]]):
        """events: closing it cancels what still runs. conclude: the replies, once that has happened."""
        self._events, self._conclude = events, conclude

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Cancel what is still running; what it has committed stays."""
        self._events.close()

    def replies(self) -> list[Reply]:
        """The replies of all requests, in order; what is still running is cancelled. A request that failed carries its
        error in its reply."""
        self.close()
        return self._conclude()
