"""Arithmetic sampling: a sample is one number, read along the whole text as an arithmetic code.

Vilnis et al., Arithmetic sampling: parallel diverse decoding for large language models, 2023, arXiv 2210.15458. The numbers
of n samples are one random number shifted by 0, 1/n, … (n - 1)/n: each sample has its right law, and together they cover the
space of texts evenly, so means over them vary less than over independent samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from decodery.sampling.chance.base import DrawnSample, Source, refuse_other_draws
from decodery.sampling.noise import Chance, Index, Noise, Numbers, Stage, inverse

if TYPE_CHECKING:
    from torch import Tensor

FINEST = 2.0**-53
"""Step between the numbers that are drawn."""
COARSEST = 2.0**-32
"""A number whose digits are spent down to this step gets fresh ones behind them."""


class Code(Numbers):
    """One number in [0, 1) that names a text. Each token takes its part of the number, and the rest is stretched for the next.

    start: the number; first: the position of the first token; noise: for digits beyond those of the number, and for
    decisions of steps of the law.
    """

    by_mass = True

    def __init__(self, source: Source, start: float, first: int, noise: Noise):
        self._source, self._noise = source, noise
        self._codes: dict[int, tuple[float, float]] = {first: (start, FINEST)}
        """Position -> what is left of the number there, and the step to which it is known."""

    def choose(
        self, probabilities: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()
    ) -> int:
        """Raises Refused for draws other than the target's tokens in order."""
        if stage is Stage.LAW:
            return self._noise.choose(probabilities, position, stage, index)
        if stage is not Stage.TARGET or position not in self._codes:
            raise refuse_other_draws(self._source, f"draws for {stage.name.lower()} at position {position}")
        code, step = self._codes[position]
        self.note(position, stage, index, code)
        place, before, share = inverse(probabilities, code)
        code, step = (code - before) / share, step / share
        if step > COARSEST:
            code, step = code + step * self._noise.uniform(position + 1, stage, ("digits",)), FINEST
        self._codes[position + 1] = min(max(code, 0.0), 1 - FINEST), step
        return place

    def race(self, log_weights: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()) -> int:
        """Raises Refused."""
        raise refuse_other_draws(self._source, f"races for {stage.name.lower()}")

    def uniform(self, position: int, stage: Stage, index: Index = 0) -> float:
        """Raises Refused."""
        raise refuse_other_draws(self._source, f"draws for {stage.name.lower()}")

    def key(self, position: int, stage: Stage, index: Index = 0) -> int:
        """Raises Refused."""
        raise refuse_other_draws(self._source, f"races for {stage.name.lower()}")

    def fork(self, text: Sequence[int]) -> Self:
        other = type(self)(self._source, 0.0, 0, self._noise)
        other._codes, other.record = dict(self._codes), self.record
        return other


@dataclass(frozen=True)
class Arithmetic(Source):
    """Samples that cover the space of texts evenly; with n = 1 an ordinary sample."""

    name = "arithmetic"
    summary = "The n samples cover the space of texts evenly: one number, shifted by 1/n, read as an arithmetic code."
    target_only = "a sample is one number that is read along the text, a token of the target at a time"

    def chance(self, sample: DrawnSample) -> Chance:
        number = Noise(sample.seed).uniform(sample.prompt, Stage.TARGET, ("arithmetic",))
        start = (number + sample.number / sample.of) % 1.0
        return Code(self, start, sample.prompt, Noise(sample.seed, sample.number))
