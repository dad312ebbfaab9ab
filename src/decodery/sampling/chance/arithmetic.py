"""Arithmetic sampling: a sample is one number, read along the whole text as an arithmetic code.

Vilnis et al., Arithmetic sampling: parallel diverse decoding for large language models, 2023, arXiv 2210.15458. The numbers
of n samples are one random number shifted by 0, 1/n, … (n - 1)/n: each sample has its right law, and together they cover the
space of texts evenly, so means over them vary less than over independent samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Self, TypeAlias

from decodery.sampling.chance.base import DrawnSample, Source, refuse_other_draws
from decodery.sampling.noise import Chance, Index, Noise, Numbers, Stage, inverse

if TYPE_CHECKING:
    from jaxtyping import Int64
    from torch import Tensor

FINEST = 2.0**-53
"""Step between the numbers that are drawn."""
COARSEST = 2.0**-32
"""A number whose digits are spent down to this step gets fresh ones behind them."""


Codes: TypeAlias = tuple[tuple[float, float], ...]
"""Of each number what is left of it, and the step to which that is known; the next token reads the first, which then goes to
the end."""


class Code(Numbers):
    """One number in [0, 1) that names a text, or several that are read in turn. Each token takes its part of a number, and the
    rest is stretched for the next.

    start: the numbers; first: the position of the first token; noise: for digits beyond those of the numbers, and for decisions
    of steps of the law. shuffle: the seed of an order of the tokens for each position, the same for all samples; None: their
    own order.
    """

    by_mass = True

    def __init__(self, source: Source, start: Sequence[float], first: int, noise: Noise, shuffle: int | None = None):
        self._source, self._noise, self._shuffle = source, noise, shuffle
        self._codes: dict[int, Codes] = {first: tuple((number, FINEST) for number in start)}
        """By position."""
        if shuffle is not None:
            self.by_mass = False  # type: ignore[misc]  # the order is one of all tokens

    def choose(
        self, probabilities: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()
    ) -> int:
        """Raises Refused for draws other than the target's tokens in order."""
        if stage is Stage.LAW:
            return self._noise.choose(probabilities, position, stage, index)
        if stage is not Stage.TARGET or position not in self._codes:
            raise refuse_other_draws(self._source, f"draws for {stage.name.lower()} at position {position}")
        (code, step), *others = self._codes[position]
        if self._shuffle is None:
            self.note(position, stage, index, code)
            place, before, share = inverse(probabilities, code)
        else:
            order = permutation(self._shuffle, position, len(probabilities))
            place, before, share = inverse(probabilities[order], code)
            place = int(order[place])
            self._note_middle(probabilities, place, position, stage, index)
        code, step = (code - before) / share, step / share
        if step > COARSEST:
            code, step = code + step * self._noise.uniform(position + 1, stage, ("digits",)), FINEST
        self._codes[position + 1] = (*others, (min(max(code, 0.0), 1 - FINEST), step))
        return place

    def _note_middle(self, probabilities: Tensor, place: int, position: int, stage: Stage, index: Index) -> None:
        """Note a number that means this token in the tokens' own order."""
        if self.record is not None:
            masses = probabilities.double().cpu()
            before = float(masses[:place].sum() + masses[place] / 2)
            self.note(position, stage, index, before / float(masses.sum()))

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
        other = type(self)(self._source, (), 0, self._noise, self._shuffle)
        other._codes, other.record = dict(self._codes), self.record
        return other


@lru_cache(maxsize=64)
def permutation(seed: int, position: int, count: int) -> Int64[Tensor, "count"]:
    """An order of `count` tokens that follows from a seed and a position. All samples of a request ask for the same."""
    return Noise(seed).uniforms(count, position, Stage.ORDER, ("tokens",)).argsort()


@dataclass(frozen=True)
class Arithmetic(Source):
    """Samples that cover the space of texts evenly; with n = 1 an ordinary sample."""

    name = "arithmetic"
    summary = "The n samples cover the space of texts evenly: one number, shifted by 1/n, read as an arithmetic code."
    target_only = "a sample is one number that is read along the text, a token of the target at a time"

    @property
    def spread(self) -> bool:
        return True

    def chance(self, sample: DrawnSample) -> Chance:
        number = Noise(sample.seed).uniform(sample.prompt, Stage.TARGET, ("arithmetic",))
        start = (number + sample.number / sample.of) % 1.0
        return Code(self, (start,), sample.prompt, Noise(sample.seed, sample.number))
