"""Only the likeliest tokens, up to a share of the entropy: top-H (Potraghloo et al. 2025, arXiv 2509.02510)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.sampling.forbidding import keep_highest
from decodery.sampling.settings import Optional, Real, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix

LIKELIEST = 100
"""So many are looked at, as in transformers; all others are forbidden."""


@dataclass(frozen=True)
class TopH(Step):
    """Of the 100 likeliest tokens, keeps those whose terms -p log p add up to at most that share of the sum of all of them, the
    likeliest in any case (as transformers does it: p is not renormalised over what is kept)."""

    top_h: float | None = setting(
        None,
        Optional(Real(0.0, 1.0, open_low=True)),
        "Only the likeliest tokens that together have at most this share of the entropy.",
        option=("--top-h",),
    )

    name = "top_h"
    place = 290
    keeps_argmax = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        assert self.top_h is not None
        for row in rows:
            law = row.topk(min(LIKELIEST, len(row))).values.double().softmax(dim=-1)
            sums = torch.special.entr(law).cumsum(dim=-1)
            keep_highest(row, max(1, int((sums <= self.top_h * sums[-1]).sum())))
        return rows
