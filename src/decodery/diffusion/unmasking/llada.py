"""LLaDA's rule: a fixed number of tokens per step, the surest first.

Nie et al., Large Language Diffusion Models, 2025, arXiv 2502.09992, section 2.4 and the official sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.diffusion.laws import highest
from decodery.diffusion.unmasking.base import CanvasStep, Commit, Rule, without_replacement

if TYPE_CHECKING:
    from decodery.diffusion.laws import Laws


def quota(masks: int, steps: int, step: int) -> int:
    """How many of `masks` tokens step number `step` of `steps` commits; all of them sum to `masks`."""
    return masks // steps + (1 if step < masks % steps else 0)


@dataclass(frozen=True)
class Quota(Rule):
    """Commits the quota of the step at the offsets of highest rank.

    rank: "confidence" ranks by the probability of the drawn token (published as low-confidence remasking; at a temperature
    this is no exact sampling, since a token is likelier to be kept if it is likely), "random" by chance, and the ranks of
    `Laws.rank` by the law alone. deferred: tokens that count as least sure however likely they are. tokens: a fixed number
    per step in place of the quota; the last step of a block takes what is left.
    """

    rank: str = "confidence"
    deferred: tuple[int, ...] = ()
    tokens: int | None = None

    def choose(self, laws: Laws, step: CanvasStep) -> Commit:
        count = min(self.tokens, len(laws)) if self.tokens else quota(step.masks, step.planned, step.in_block)
        everything = range(len(laws))
        if self.rank == "random":
            places = without_replacement(laws.chance, torch.ones(len(laws)), count, step)
        elif self.rank == "confidence" or self.deferred:
            # Which tokens are kept depends on what they are, so every step has noise of its own.
            tokens = laws.draw(everything, step.number + 1)
            rank = laws.confidence(tokens) if self.rank == "confidence" else laws.rank(self.rank)
            late = torch.tensor([token in self.deferred for token in tokens], device=rank.device)
            places = highest(rank.masked_fill(late, -float("inf")), count)
            return Commit.at(laws, places, [tokens[place] for place in places])
        else:
            places = highest(laws.rank(self.rank), count)
        return Commit.at(laws, places, laws.draw(places))
