"""Tokens of the output become less likely, as often as they occur (OpenAI's frequency_penalty; tokens of the prompt do not
count)."""

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
class FrequencyPenalty(Step):
    """Subtracts the penalty from their scores, as often as they occur."""

    frequency_penalty: float = setting(
        0.0, Real(-100.0, 100.0), "Subtracted for each time they occur in it.", option=("--frequency-penalty",)
    )

    name = "frequency_penalty"
    place = 120
    places: ClassVar[Mapping[str, float]] = {"vllm": 110}
    reads_prefix = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        for scores, prefix in zip(rows, prefixes, strict=True):
            ids, counts = prefix.output_counts(scores)
            scores[ids] -= self.frequency_penalty * counts
        return rows
