"""What came out of one request, in the form in which `--json` prints it; also where the request was interrupted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decodery.engine.events import Event, TokenLogprobs
    from decodery.language_model import LanguageModel, Reply


@dataclass
class Outcome:
    """The answer to one request. stats: as `Statistics.as_dict`; null where an interruption left a number unknown."""

    text: str
    token_ids: list[int]
    finish_reason: str
    method: str
    exactness: str
    model: str
    seed: int
    stats: dict[str, Any]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None

    @classmethod
    def of(cls, reply: Reply) -> Outcome:
        """The outcome that a reply tells of."""
        return cls(
            text=reply.text,
            token_ids=list(reply.token_ids),
            finish_reason=reply.finish_reason,
            method=reply.method,
            exactness=str(reply.exactness),
            model=reply.model,
            seed=reply.seed,
            stats=reply.stats.as_dict(),
            logprobs=reply.logprobs,
            prompt_logprobs=reply.prompt_logprobs,
        )

    def as_dict(self, lm: LanguageModel) -> dict[str, Any]:
        """For JSON. The log probabilities stand in it where they were asked for."""
        values: dict[str, Any] = {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "method": self.method,
            "exactness": self.exactness,
            "model": self.model,
            "seed": self.seed,
            "stats": self.stats,
        }
        if self.logprobs is not None:
            values["logprobs"] = _logprobs(lm, self.token_ids, self.logprobs)
        if self.prompt_logprobs is not None:
            values["prompt_logprobs"] = _logprobs(lm, None, self.prompt_logprobs)
        return values


def _logprobs(
    lm: LanguageModel, tokens: Sequence[int] | None, entries: Sequence[TokenLogprobs]
) -> list[dict[str, Any]]:
    listed = []
    for place, entry in enumerate(entries):
        token = {} if tokens is None else {"token_id": tokens[place], "text": lm.tokenizer.decode([tokens[place]])}
        top = [{"token_id": id, "text": lm.tokenizer.decode([id]), "raw": value} for id, value in entry.top]
        listed.append({**token, "raw": entry.raw, "processed": entry.processed, "top": top})
    return listed


class Gathering:
    """Follows the events of the requests of one `stream` call and keeps what they say.

    `outcomes` can be asked for at any time: a request that is not over counts as cancelled.
    """

    def __init__(self, lm: LanguageModel, prompt: Any, method: str, settings: dict[str, Any]):
        """settings: with a seed, as they were given to `stream`."""
        from decodery.engine import registry

        self._lm, self._settings = lm, settings
        self._chosen = registry.method(method)
        self._prompt = lm.tokenize(prompt)
        count = settings.get("n", 1)
        self._text = [self.echo] * count
        self._tokens: list[list[Any]] = [[] for _ in range(count)]
        self._drafted = [0] * count
        self._first = [0.0] * count
        self._over: list[tuple[str, dict[str, Any]] | None] = [None] * count
        self._started = time.perf_counter()

    @property
    def echo(self) -> str:
        """The prompt as it stands before the output; empty where it was not asked for."""
        if not self._settings.get("echo"):
            return ""
        text: str = self._lm.tokenizer.decode(self._prompt, skip_special_tokens=True)
        return text

    def follow(self, events: Iterable[Event]) -> Iterator[Event]:
        """The same events, noted down on their way."""
        from decodery.engine.events import Drafted, Finished, Token

        for event in events:
            place = event.request
            if isinstance(event, Token):
                if not self._tokens[place]:
                    self._first[place] = time.perf_counter() - self._started
                self._tokens[place].append(event)
                self._text[place] += event.text
            elif isinstance(event, Drafted):
                self._drafted[place] += len(event.tokens)
            elif isinstance(event, Finished):
                self._text[place] += event.text
                self._over[place] = event.reason, event.statistics.as_dict()
            yield event

    def outcomes(self) -> list[Outcome]:
        """One per sample."""
        return [self._outcome(place) for place in range(len(self._tokens))]

    def _outcome(self, place: int) -> Outcome:
        over = self._over[place]
        reason, stats = over if over is not None else ("cancelled", self._partial_statistics(place))
        wanted = self._settings.get("logprobs") is not None
        return Outcome(
            text=self._text[place],
            token_ids=[token.token_id for token in self._tokens[place]],
            finish_reason=reason,
            method=self._chosen.spec(),
            exactness=str(self._chosen.exactness),
            model=self._lm.name,
            seed=self._settings["seed"],
            stats=stats,
            logprobs=[token.logprobs for token in self._tokens[place]] if wanted else None,
        )

    def _partial_statistics(self, place: int) -> dict[str, Any]:
        """What the events of an interrupted request tell; the forwards are not among it."""
        from decodery.engine.statistics import Statistics, peak_memory

        tokens = self._tokens[place]
        accepted = sum(token.from_draft for token in tokens)
        known = Statistics(
            prompt_tokens=len(self._prompt),
            new_tokens=len(tokens),
            rounds=len(tokens) - accepted,  # each round brings one token of the target's own
            drafted=self._drafted[place],
            accepted=accepted,
            bonus=len(tokens) - accepted,
            first_token_seconds=self._first[place],
            seconds=time.perf_counter() - self._started,
            peak_memory_bytes=peak_memory(),
        )
        return {**known.as_dict(), "forwards": None, "rows": None, "models": None}
