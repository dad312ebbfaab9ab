"""No token below a probability: epsilon sampling (Hewitt et al. 2022, arXiv 2210.15191)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.sampling.forbidding import FORBIDDEN
from decodery.sampling.settings import Real, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix


@dataclass(frozen=True)
class EpsilonCutoff(Step):
    """Forbids tokens less likely than epsilon, but for the likeliest."""

    epsilon_cutoff: float = setting(
        0.0, Real(0.0, 1.0), "Only tokens at least that likely, and the likeliest.", option=("--epsilon-cutoff",)
    )

    name = "epsilon_cutoff"
    place = 340
    keeps_argmax = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        unlikely = rows.softmax(dim=-1) < self.epsilon_cutoff
        return rows.masked_fill_(unlikely & (rows < rows.amax(-1, keepdim=True)), FORBIDDEN)
