"""Only scores within n standard deviations of the highest (Tang et al. 2024, Top-nσ, arXiv 2411.07641)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.sampling.forbidding import FORBIDDEN, forbid_below
from decodery.sampling.settings import Real, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix


@dataclass(frozen=True)
class TopNSigma(Step):
    """Forbids scores below the highest by more than n standard deviations of all scores that are not forbidden. Scores, not
    probabilities: what is kept does not depend on the temperature."""

    top_n_sigma: float = setting(
        0.0,
        Real(0.0),
        "Only scores within that many standard deviations of the highest; 0: all.",
        aliases=("top_nsigma",),
        option=("--top-n-sigma",),
    )

    name = "top_n_sigma"
    place = 292
    keeps_argmax = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        # Row by row: how a sum over many rows is grouped may depend on their number.
        spread = torch.stack([row[row > FORBIDDEN].double().std(correction=0) for row in rows])
        return forbid_below(rows, rows.amax(-1) - self.top_n_sigma * spread)
