"""Fast-dLLM's rules: as many tokens per step as the model is sure of.

Wu et al., Fast-dLLM, 2025, arXiv 2505.22618, section 3.3 and theorem 1: if each of n laws gives its likeliest token more than
1 - eps and (n + 1) eps <= 1, the likeliest tokens together are the likeliest outcome of any joint law with these marginals.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.diffusion.laws import descending
from decodery.diffusion.unmasking.base import CanvasStep, Commit, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.diffusion.laws import Laws


def reaching(confidence: Tensor, threshold: float) -> list[int]:
    """The places whose log probability is at least that of `threshold`, ascending."""
    least = math.log(threshold) if threshold > 0 else -math.inf
    return [place for place, value in enumerate(confidence.tolist()) if value >= least]


@dataclass(frozen=True)
class ByConfidence(Rule):
    """Base of the rules that take what is sure enough.

    value_independent: the confidence of an offset is its highest probability, and only the chosen ones draw a token; otherwise
    that of the token it has drawn (the same in greedy decoding).
    """

    value_independent: bool = False

    def choose(self, laws: Laws, step: CanvasStep) -> Commit:
        if self.value_independent or laws.law.greedy:
            tokens = laws.best.tolist() if laws.law.greedy else []
            confidence = laws.confidence(tokens) if tokens else laws.rank("max_probability")
        else:
            tokens = laws.draw(range(len(laws)), step.number + 1)
            confidence = laws.confidence(tokens)
        places = self.sure(confidence, laws.offsets)
        return Commit.at(laws, places, [tokens[place] for place in places] if tokens else laws.draw(places))

    @abstractmethod
    def sure(self, confidence: Tensor, offsets: Sequence[int]) -> list[int]:
        """The places to be filled, ascending, given the log probability [m] and the offset of each; at least the surest."""


@dataclass(frozen=True)
class Threshold(ByConfidence):
    """All offsets whose confidence is at least `threshold`, and always the surest one."""

    threshold: float = 0.9

    def sure(self, confidence: Tensor, offsets: Sequence[int]) -> list[int]:
        return reaching(confidence, self.threshold) or descending(confidence)[:1]


@dataclass(frozen=True)
class Factor(ByConfidence):
    """The largest number n of surest offsets for which (n + 1) (1 - the n-th confidence) is below `factor`, at least one."""

    factor: float = 1.0

    def sure(self, confidence: Tensor, offsets: Sequence[int]) -> list[int]:
        order = descending(confidence)
        count = 1
        for n, place in enumerate(order, start=1):
            if (n + 1) * -math.expm1(float(confidence[place])) < self.factor:
                count = n
        return sorted(order[:count])
