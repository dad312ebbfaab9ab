"""No token below a probability that falls where the law is uncertain: eta sampling (Hewitt et al. 2022, arXiv 2210.15191)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.sampling.entropy import entropies
from decodery.sampling.forbidding import FORBIDDEN
from decodery.sampling.settings import Real, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix


@dataclass(frozen=True)
class EtaCutoff(Step):
    """Forbids tokens less likely than min(epsilon, sqrt(epsilon) * exp(-entropy)), but for the likeliest."""

    eta_cutoff: float = setting(
        0.0,
        Real(0.0, 1.0),
        "The same with a limit that falls with the entropy: min(x, sqrt(x) * exp(-entropy)).",
        option=("--eta-cutoff",),
    )

    name = "eta_cutoff"
    place = 350
    keeps_argmax = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        least = (math.sqrt(self.eta_cutoff) * (-entropies(rows)).exp()).clamp_(max=self.eta_cutoff)
        unlikely = rows.softmax(dim=-1) < least[:, None]
        return rows.masked_fill_(unlikely & (rows < rows.amax(-1, keepdim=True)), FORBIDDEN)
