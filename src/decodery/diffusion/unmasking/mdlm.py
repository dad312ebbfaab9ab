"""MDLM's ancestral sampler: each masked position is freed by chance, at the rate of the log-linear noise schedule.

Sahoo et al., Simple and Effective Masked Diffusion Language Models, 2024, arXiv 2406.07524, section 3.5. A step that frees
nothing costs no forward: the model sees the same canvas again, so its answer is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.diffusion.unmasking.base import CanvasStep, Commit, Rule
from decodery.diffusion.unmasking.dream import share

if TYPE_CHECKING:
    from decodery.diffusion.laws import Laws

LAST_TIME = 1e-5
"""Where the grid of times ends; what is masked then is filled in one further step."""


@dataclass(frozen=True)
class Ancestral(Rule):
    """From time t to s each masked position stays masked with probability s / t, and else draws its token."""

    def choose(self, laws: Laws, step: CanvasStep) -> Commit:
        freed = 1.0 if step.in_block >= step.planned else share(step.in_block, step.planned, LAST_TIME)
        places = [
            place
            for place, offset in enumerate(laws.offsets)
            if freed >= 1.0 or laws.chance.accept(freed, laws.prompt + offset, step.number)
        ]
        return Commit.at(laws, places, laws.draw(places))
