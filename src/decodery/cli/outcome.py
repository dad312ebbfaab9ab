"""What came out of one request, in the form in which `--json` prints it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decodery.engine.events import TokenLogprobs
    from decodery.language_model import LanguageModel
    from decodery.replies import Reply


@dataclass
class Outcome:
    """One text that was asked for. stats: as `Statistics.as_dict`. weight, score: as in `Reply`."""

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
    weight: float | None = None
    score: float | None = None

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
            weight=reply.weight,
            score=reply.score,
        )

    def as_dict(self, lm: LanguageModel) -> dict[str, Any]:
        """For JSON. The log probabilities stand in it where they were asked for, weight and score where there are any."""
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
        if self.weight is not None:
            values["weight"] = self.weight
        if self.score is not None:
            values["score"] = self.score
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
