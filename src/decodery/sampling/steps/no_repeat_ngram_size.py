"""No run of n tokens twice, prompt included (transformers' no_repeat_ngram_size; Paulus et al. 2018, arXiv 1705.04304)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.sampling.forbidding import FORBIDDEN
from decodery.sampling.repetition import repetitions
from decodery.sampling.settings import Whole, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix


@dataclass(frozen=True)
class NoRepeatNgram(Step):
    """Forbids every token that would complete a run of n tokens which the text holds already."""

    no_repeat_ngram_size: int = setting(
        0, Whole(0), "No run of that many tokens comes twice; 0: any may.", option=("--no-repeat-ngram-size",)
    )

    name = "no_repeat_ngram_size"
    place = 134
    reads_prefix = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        before = self.no_repeat_ngram_size - 1
        for scores, prefix in zip(rows, prefixes, strict=True):
            if before == 0:
                scores[list(prefix.counts())] = FORBIDDEN
            else:
                found = repetitions(prefix.tokens, before)
                scores[[token for token, length in found.items() if length == before]] = FORBIDDEN
        return rows
