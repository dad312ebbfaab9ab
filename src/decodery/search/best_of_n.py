"""Best of n: several samples, and the likeliest of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import parameter
from decodery.search.tries import Try, TryingMethod

if TYPE_CHECKING:
    from decodery.engine.request import Request


@dataclass(frozen=True)
class BestOfN(TryingMethod):
    """Draw several texts and give the one that the model itself finds likeliest, whatever method draws them."""

    name: ClassVar[str] = "best-of-n"
    title: ClassVar[str] = "Best of n samples"
    paper: ClassVar[str] = "best_of of OpenAI's completions, 2020; Chen et al., 2021, arXiv 2107.03374"

    by: str = parameter(
        "mean", "what is ranked by: log probability per token, or of the whole text", choices=("mean", "total")
    )

    def ranked(self, request: Request, tries: Sequence[Try]) -> list[tuple[Try, float, float]]:
        scores = {one.number: one.mean if self.by == "mean" else one.log_probability for one in tries}
        order = sorted(tries, key=lambda one: (-scores[one.number], one.number))
        return [(one, scores[one.number], math.exp(one.log_probability)) for one in order]
