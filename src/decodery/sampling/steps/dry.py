"""DRY: what would continue a repetition becomes less likely, the more so the longer it is (p-e-w 2024,
text-generation-webui#5677; as in llama.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery._lazy import np, torch
from decodery.sampling.phrases import Breakers, Phrases
from decodery.sampling.repetition import repetitions
from decodery.sampling.settings import Real, Whole, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix

BREAKERS = ("\n", ":", '"', "*")


@dataclass(frozen=True)
class Dry(Step):
    """Subtracts multiplier * base ** (n - allowed length) from the score of a token that would extend a repetition of n >=
    allowed length tokens. No repetition reaches back over a breaker, and a breaker of one token is never penalised."""

    dry_multiplier: float = setting(
        0.0, Real(0.0), "Subtracted where a repetition would be extended.", option=("--dry-multiplier",)
    )
    dry_base: float = setting(1.75, Real(1.0), "Factor for each token that it is longer.", option=("--dry-base",))
    dry_allowed_length: int = setting(
        2, Whole(1), "Repetitions of fewer tokens may be extended freely.", option=("--dry-allowed-length",)
    )
    dry_penalty_last_n: int = setting(
        -1,
        Whole(-1),
        "So many last tokens are searched for repetitions; -1: all, 0: none.",
        option=("--dry-penalty-last-n",),
    )
    dry_sequence_breakers: Phrases = setting(  # noqa: RUF009 (a dataclass field like the others)
        BREAKERS,
        Breakers(),
        "Texts over which no repetition reaches, or lists of token ids; may be repeated.",
        option=("--dry-sequence-breaker",),
    )

    name = "dry"
    place = 125
    reads_prefix = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        breakers: dict[int, list[tuple[int, ...]]] = {}
        for head, *tail in Breakers.ids("dry_sequence_breakers", self.dry_sequence_breakers):
            breakers.setdefault(head, []).append(tuple(tail))
        # Beyond what a float32 holds a longer repetition counts no more.
        most = int(math.log(float(np.finfo(np.float32).max)) / math.log(self.dry_base)) if self.dry_base > 1 else None
        for scores, prefix in zip(rows, prefixes, strict=True):
            penalties = {}
            for token, length in self._repeated(prefix.tokens, breakers).items():
                extra = length - self.dry_allowed_length
                if extra >= 0 and () not in breakers.get(token, ()):
                    extra = extra if most is None else min(extra, most)
                    penalties[token] = self.dry_multiplier * self.dry_base**extra
            if penalties:
                ids = torch.tensor(list(penalties), dtype=torch.long, device=rows.device)
                scores[ids] -= torch.tensor(list(penalties.values()), device=rows.device).to(scores)
        return rows

    def _repeated(self, text: Sequence[int], breakers: dict[int, list[tuple[int, ...]]]) -> dict[int, int]:
        searched = len(text) if self.dry_penalty_last_n < 0 else min(len(text), self.dry_penalty_last_n)
        if searched <= self.dry_allowed_length:
            return {}
        last = list(text[len(text) - searched :])
        return repetitions(last, _since_breaker(last, breakers))


def _since_breaker(text: list[int], breakers: dict[int, list[tuple[int, ...]]]) -> int:
    """How many tokens stand behind the last breaker; all where there is none."""
    for after, token in enumerate(reversed(text)):
        tails = breakers.get(token)
        if tails:
            behind = text[len(text) - after :]
            fitting = [len(tail) for tail in tails if tuple(behind[: len(tail)]) == tail]
            if fitting:
                return after - max(fitting)
    return len(text)
