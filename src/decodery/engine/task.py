"""What the scheduler drives: any coroutine that asks for scores. Decoding a request is one kind."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from decodery.engine.asking import Asking as Asking
from decodery.engine.composed import expanded
from decodery.engine.cost import CostCurve
from decodery.engine.memory import Need
from decodery.engine.statistics import Statistics
from decodery.errors import BadSetting, ScoresNotNumbers

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.method import Method
    from decodery.engine.request import Request
    from decodery.engine.sharing import Pending
    from decodery.models.scorer import Scorer
    from decodery.sampling.law import Law

Value = TypeVar("Value")


class Task(Generic[Value]):
    """A coroutine, what memory it needs, and what became of it.

    coroutine: see `Asking`; it begins when the scheduler admits the task. caches: what it may keep at once, of each sequence
    its network and the most rows that it may have; memory is set aside for them before it begins. cost: the cost curve of a
    network, by which long texts are cut while others wait; None: as if every pass took the same time.
    """

    kept = 0
    """How many first rows of its sequences later tasks are likely to begin with; they go to the prefix cache."""

    def __init__(
        self,
        coroutine: Asking[Value],
        caches: Sequence[tuple[Scorer, int]] = (),
        cost: Callable[[Scorer], CostCurve] | None = None,
    ):
        self._coroutine, self._caches, self._cost = coroutine, caches, cost
        self.statistics = Statistics()
        self.company = 1
        """How many tasks share the engine now."""
        self.finish_reason: str | None = None
        """None until it is over; then "returned", "error" or "cancelled"."""
        self.value: Value | None = None
        """What the coroutine returned."""
        self.error: Exception | None = None
        """What ended it, where it failed."""

    @property
    def over(self) -> bool:
        """Whether nothing more is to be done."""
        return self.finish_reason is not None

    def need(self) -> Need:
        """What memory it can need at most."""
        return Need.of_caches(self._caches)

    def begin(self, need: Need | None) -> Asking[Value]:
        """The coroutine. need: what was set aside; None where memory is not limited."""
        return self._coroutine

    def cost(self, network: Scorer) -> CostCurve:
        """Seconds by rows of a network's passes."""
        return CostCurve.flat() if self._cost is None else self._cost(network)

    def reads(self, ask: Pending) -> bool:
        """Whether an ask reads a text that was there before, and may be cut into pieces while others wait."""
        return ask.plain

    def draws(self, asks: Sequence[Pending]) -> tuple[Law, Tensor] | None:
        """The law and the raw scores [vocabulary] that it likely draws from when it goes on, so that those of a round are
        computed together."""
        return None

    def meets(self, company: int, away: float) -> None:
        """So many tasks share the engine now, this one included. away: see `Scheduler.away`."""
        self.company = company

    # How it ends

    def returned(self, value: Value) -> None:
        """The coroutine has returned."""
        self.value, self.finish_reason = value, "returned"

    def failed(self, error: Exception) -> None:
        """The coroutine, or what it asked for, has failed; or it cannot begin. Harmless where the task is over."""
        if not self.over:
            self.error, self.finish_reason = error, "error"

    def cancelled(self) -> None:
        """Nobody wants its result any more. Harmless where the task is over."""
        if not self.over:
            self.finish_reason = "cancelled"


def as_task(coroutine: Any, cost: Callable[[Scorer], CostCurve]) -> Task[Any]:
    """A task as it is, or one of a coroutine. cost: of tasks that have none. Raises BadSetting where it is neither, or over."""
    if isinstance(coroutine, Task):
        if coroutine.over:
            raise BadSetting("the task is over; a coroutine runs once, so make another one.")
        coroutine._cost = coroutine._cost or cost
        return coroutine
    if not isinstance(coroutine, Generator):
        raise BadSetting(f"what is run is a generator that yields forwards, or a Task of one, not {coroutine!r}.")
    return Task(coroutine, cost=cost)


class Decode(Task[None]):
    """The decoding of a request by a method. What comes of it, and its end, are the request's."""

    def __init__(self, request: Request, method: Method):
        self.request, self.method = request, method
        self.statistics = request.statistics
        self.kept = len(request.prompt)

    @property
    def over(self) -> bool:
        return self.request.finish_reason is not None

    def need(self) -> Need:
        return Need.of(self.request, self.method)

    def begin(self, need: Need | None) -> Asking[None]:
        if self.method.together != self.request.together:
            kind = "together" if self.method.together else "one by one"
            raise ValueError(f"{self.method.name} decides texts {kind}, and the request was not made for that")
        if need is not None:
            self.request.rows = need.rows
        decoding = self.method.decode(self.request)
        return decoding if self.request.settings.target is None else expanded(decoding)

    def cost(self, network: Scorer) -> CostCurve:
        return self.request.host.cost(network)

    def reads(self, ask: Pending) -> bool:
        # Long drafts are no prompts: their requests are those that must not wait.
        return ask.plain and ask.base < len(self.request.prompt) - 1

    def draws(self, asks: Sequence[Pending]) -> tuple[Law, Tensor] | None:
        target = self.request.network
        for ask in asks:
            if ask.answer is not None and ask.forward.sequence.owner is target and len(ask.answer.logits):
                return self.request.law, ask.answer.logits[0]
        return None

    def meets(self, company: int, away: float) -> None:
        self.request.company, self.request.away = company, away

    def returned(self, value: None) -> None:
        if not self.over:
            self.failed(RuntimeError(f"{self.method.name} returned before its output was over"))

    def failed(self, error: Exception) -> None:
        if isinstance(error, ScoresNotNumbers) and error.raw:
            origin = self.request.host.network.origin_of_faults(self.request.tokens)
            error = ScoresNotNumbers(f"{error}: {origin}.", raw=True)
        self.request.finish("error", error)

    def cancelled(self) -> None:
        self.request.finish("cancelled")
