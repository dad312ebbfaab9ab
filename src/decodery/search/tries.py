"""Several tries at a text by a method that draws, and a decision among them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.asking import Asking, together
from decodery.engine.method import Decoding, Exactness, Method, admit, parameter
from decodery.engine.needs import NEXT_TOKENS
from decodery.engine.registry import method as as_method
from decodery.errors import BadParameter, Refused

if TYPE_CHECKING:
    from decodery.engine.output import Output
    from decodery.engine.prompt_layout import Arrangement
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer


@dataclass(frozen=True)
class Try:
    """A finished text. number: which sample it is. log_probability: of its tokens, under the model's own law."""

    number: int
    output: Output
    log_probability: float

    @property
    def mean(self) -> float:
        """Log probability per token."""
        return self.log_probability / len(self.output.new_tokens)


@dataclass(frozen=True)
class TryingMethod(Method):
    """Base of methods that let another draw several texts and decide among these.

    The tries are the very samples that the other method gives for `n=samples` at the same seed.
    """

    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "search"
    together: ClassVar[bool] = True

    method: str = parameter("autoregressive", "what draws the tries; in quotes where it has parameters", names="method")
    samples: int = parameter(8, "tries", low=1, high=1024)
    at_once: int | None = parameter(None, "tries that share passes, and memory", low=1, auto="all")

    @abstractmethod
    def ranked(self, request: Request, tries: Sequence[Try]) -> list[tuple[Try, float, float]]:
        """All tries, best first, each with its score and its weight."""

    def decided(self, tries: Sequence[Try]) -> bool:
        """Whether further tries cannot change the decision."""
        return False

    def next_tries(self, request: Request, tries: Sequence[Try]) -> range:
        """Numbers of the tries that are drawn next, together; none where there are enough."""
        done = len(tries)
        if done >= request.n and self.decided(tries):
            return range(0)
        return range(done, min(done + (self.at_once or self.samples), self.samples))

    def check(self) -> None:
        inner = self.inner
        if inner.together or NEXT_TOKENS not in inner.needs:
            raise BadParameter(
                f"{self.name}: {inner.name} cannot draw the tries; name a method that decodes one text of a causal model."
            )

    @property
    def inner(self) -> Method:
        """What draws the tries."""
        return as_method(self.method)

    @property
    def arrangement(self) -> Arrangement | None:
        return self.inner.arrangement

    def admit(self, request: Request) -> None:
        if request.n > self.samples:
            raise Refused(
                f"{self.name} gives at most as many texts as samples, which are {self.samples}, and n is {request.n}."
            )
        if request.law.greedy and self.samples > 1:
            raise Refused(
                f"{self.name} decides among texts that differ, and at temperature 0 all are one; set a temperature."
            )
        reason = request.settings.chance.refuses_samples(self.samples)
        if reason is not None:
            raise Refused(f"{self.name} does not run with chance {request.settings.chance.name}: {reason}.")
        admit(self.inner, request)

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        return self.inner.caches(request) * min(self.at_once or self.samples, self.samples)

    def decode(self, request: Request) -> Decoding:
        yield from request.score_prompt(request.new_sequence())
        tries: list[Try] = []
        while numbers := self.next_tries(request, tries):
            tries += yield from together([self._try(request, number) for number in numbers])
        request.statistics.details["tries"] = [
            {
                "sample": one.number,
                "text": one.output.text,
                "tokens": len(one.output.new_tokens),
                "log_probability": one.log_probability,
                "finish_reason": one.output.finish_reason,
            }
            for one in tries
        ]
        chosen = self.ranked(request, tries)[: request.n]
        for one, score, _ in chosen:
            one.output.score = score
        request.conclude([(one.output, weight) for one, _, weight in chosen])

    def attempt(self, request: Request, number: int) -> Request:
        """The request of a try."""
        return request.attempt(number, self.samples)

    def _try(self, request: Request, number: int) -> Asking[Try]:
        attempt = self.attempt(request, number)
        yield from self.inner.decode(attempt)
        if attempt.output.finish_reason is None:
            raise RuntimeError(f"{self.inner.name} returned before its output was over")
        log_probability = sum(entry.raw for entry in attempt.output.logprobs)
        return Try(number, request.take(attempt), log_probability)
