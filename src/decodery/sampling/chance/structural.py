"""The noise of a structural causal model of sampling: every place of the output has its own, whatever stands before it.

A token is a function of the law and of the noise at its place, counted from the end of the prompt. So one can ask what had been
written, had a token, the prompt or the law been another, all else equal (Chatzi et al. 2024, arXiv 2409.17027, section 3).
What the noise is attached to makes the model: with one Gumbel number for each token, a token is exchanged only where another
has gained on it (counterfactual stability: Oberst and Sontag 2019, arXiv 1905.05824).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.sampling.chance.base import DrawnSample, Source
from decodery.sampling.noise import Chance, Index, Noise, Stage, gumbel, inverse
from decodery.sampling.settings import OneOf, setting

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from torch import Tensor

ATTACHED = ("token", "rank", "number")


class PlacedNoise(Noise):
    """Noise whose addresses count from the end of the prompt, so that a place keeps its noise behind another prompt."""

    by_mass = False

    def __init__(self, seed: int, sample: int, prompt: int, attached: str = "token"):
        super().__init__(seed, sample)
        self._prompt, self.attached = prompt, attached

    def _digest(self, position: int, stage: Stage, index: Index, size: int) -> bytes:
        # Steps of a canvas count from 0 themselves.
        place = position if stage is Stage.ORDER else position - self._prompt
        return super()._digest(place, stage, index, size)

    def gumbels(self, count: int, position: int, stage: Stage, index: Index = 0) -> Float64[Tensor, "count"]:
        """`count` independent numbers of Gumbel's law, float64."""
        return gumbel(self.uniforms(count, position, stage, index))

    def choose(
        self,
        probabilities: Float[Tensor, "n"],
        position: int,
        stage: Stage,
        index: Index = 0,
        path: Sequence[int] = (),
    ) -> int:
        if self.attached == "number":
            return super().choose(probabilities, position, stage, index, path)
        if self.attached == "token":
            return self.race(probabilities.log(), position, stage, index, path)
        shares, ids = probabilities.sort(descending=True, stable=True)
        return int(ids[self.race(shares.log(), position, stage, index, path)])

    def margin(self, probabilities: Float[Tensor, "n"], position: int) -> float:
        """By how much the draw of the target's token at a position is decided: the distance between the two highest sums of log
        probability and noise, or that of the number to the edge of the chosen token's part. Rounding of the law by less changes
        no choice."""
        if self.attached == "number":
            number = self.uniform(position, Stage.TARGET)
            _, before, share = inverse(probabilities, number)
            return min(number - before, before + share - number)
        shares = probabilities.double().cpu()
        if self.attached == "rank":
            shares = shares.sort(descending=True, stable=True).values
        sums = shares.log() + self.gumbels(len(shares), position, Stage.TARGET)
        best = sums.topk(2).values
        return float(best[0] - best[1])


@dataclass(frozen=True)
class Structural(Source):
    """Noise of each place of the output, for runs that are to be replayed under changes."""

    noise: str = setting(
        "token",
        OneOf(ATTACHED),
        "What the noise is attached to: token: each has a Gumbel number, the highest sum wins; rank: each rank has; number: "
        "one number, read along the cumulated law.",
    )

    name = "structural"
    summary = "Noise of each place of the output, whatever the prompt: what would have come, had something else been otherwise."

    def chance(self, sample: DrawnSample) -> Chance:
        if self.noise == "number":
            return NumberedNoise(sample.seed, sample.number, sample.prompt, self.noise)
        return PlacedNoise(sample.seed, sample.number, sample.prompt, self.noise)


class NumberedNoise(PlacedNoise):
    """The same, where cumulated masses alone are looked at."""

    by_mass = True


def posterior_gumbels(
    log_law: Float64[Tensor, "n"], observed: int, numbers: Float64[Tensor, "m"]
) -> Float64[Tensor, "n"]:
    """Gumbel noise of n tokens, given that `observed` won under a law.

    log_law: log probabilities [n], normalised. numbers: [n + 1] in [0, 1): for the winning sum, and one for each token. The
    winning sum has Gumbel's law and the others are cut off below it (Maddison et al. 2014, arXiv 1411.0030); noise of tokens
    without probability was not looked at, and so is not cut off. Averaged over tokens that are drawn from the law, it is
    Gumbel noise again.
    """
    fresh = gumbel(numbers)
    highest = fresh[-1]
    sums = torch.where(log_law.isfinite(), fresh[:-1] + log_law, -torch.inf)
    cut = -torch.logaddexp(-highest, -sums)
    noise = torch.where(log_law.isfinite(), cut - log_law, fresh[:-1])
    noise[observed] = highest - log_law[observed]
    return noise
