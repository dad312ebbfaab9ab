"""Dream's rules: a grid of times says how many tokens a step commits, and one of four ranks which.

Ye et al., Dream 7B, 2025, arXiv 2508.15487, and the official sampler. Confidences are those of the law after temperature,
top-k and top-p, from which the tokens are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.diffusion.laws import highest
from decodery.diffusion.unmasking.base import CanvasStep, Commit, Rule, without_replacement

if TYPE_CHECKING:
    from decodery.diffusion.laws import Laws

LAST_TIME = 1e-3
"""Where the grid of times ends."""
RANKED = ("maskgit_plus", "topk_margin", "entropy")
ALGORITHMS = ("origin", *RANKED)


def share(step: int, steps: int, last_time: float) -> float:
    """Of what is masked before step `step` of `steps`, the share that is not any more after it: 1 - s / t on an even grid
    from 1 down to `last_time`."""
    width = (1.0 - last_time) / steps
    return width / (1.0 - step * width)


@dataclass(frozen=True)
class TimeGrid(Rule):
    """algorithm: "origin" frees each offset by chance, the others the surest ones: by the probability of the drawn token
    (maskgit_plus), by margin, or by entropy. alg_temp: above 0, offsets are drawn in proportion to exp(rank / alg_temp)."""

    algorithm: str = "entropy"
    alg_temp: float = 0.0

    def choose(self, laws: Laws, step: CanvasStep) -> Commit:
        last = step.in_block >= step.planned - 1
        freed = 1.0 if last else share(step.in_block, step.planned, LAST_TIME)
        if self.algorithm == "origin":
            places = [
                place
                for place, offset in enumerate(laws.offsets)
                if last or laws.chance.accept(freed, laws.prompt + offset, step.number)
            ]
            return Commit.at(laws, places, laws.draw(places))
        count = len(laws) if last else int(len(laws) * freed)
        if count == 0:
            return Commit()
        if self.algorithm == "maskgit_plus":
            tokens = laws.draw(range(len(laws)), step.number + 1)
            rank = laws.confidence(tokens, filtered=True).exp()
        else:
            tokens = []
            rank = laws.rank("margin" if self.algorithm == "topk_margin" else "entropy", filtered=True)
        if self.alg_temp > 0:
            places = without_replacement(laws.chance, (rank / self.alg_temp).softmax(0), count, step)
        else:
            places = highest(rank, count)
        return Commit.at(laws, places, [tokens[place] for place in places] if tokens else laws.draw(places))
