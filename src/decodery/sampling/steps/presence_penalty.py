"""Tokens of the output become less likely, once (OpenAI's presence_penalty; tokens of the prompt do not count)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.sampling.settings import Real, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix


@dataclass(frozen=True)
class PresencePenalty(Step):
    """Subtracts the penalty from their scores, once."""

    presence_penalty: float = setting(
        0.0, Real(-100.0, 100.0), "Subtracted for tokens of the output.", option=("--presence-penalty",)
    )

    name = "presence_penalty"
    place = 110
    places: ClassVar[Mapping[str, float]] = {"vllm": 120}
    reads_prefix = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        for scores, prefix in zip(rows, prefixes, strict=True):
            ids, _ = prefix.output_counts(scores)
            scores[ids] -= self.presence_penalty
        return rows
