"""Every draw is a race: each token has noise of its own, and the highest sum of log probability and noise wins.

The Gumbel-max trick. Two runs that meet slightly different laws at the same address choose the same token mostly, since each
token keeps its noise (Maddison et al. 2014, arXiv 1411.0030; counterfactuals: Oberst and Sontag 2019, arXiv 1905.05824).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.sampling.chance.base import DrawnSample, Source
from decodery.sampling.noise import Chance, Index, Noise, Stage

if TYPE_CHECKING:
    from torch import Tensor


class Race(Noise):
    """Noise that draws by races alone."""

    by_mass = False

    def choose(
        self, probabilities: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()
    ) -> int:
        """As `race`, of probabilities."""
        return self.race(probabilities.log(), position, stage, index, path)


@dataclass(frozen=True)
class GumbelRace(Source):
    """Noise of the same addresses as `addressed`, spent by races."""

    name = "gumbel"
    summary = "A Gumbel race at every draw: laws that differ little give the same token mostly."

    def chance(self, sample: DrawnSample) -> Chance:
        return Race(sample.seed, sample.number)
