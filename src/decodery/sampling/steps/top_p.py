"""Only the likeliest tokens that together reach a mass: nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.sampling.settings import Real, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix

FORBIDDEN = float("-inf")


@dataclass(frozen=True)
class TopP(Step):
    """Keeps the smallest set of likeliest tokens whose mass reaches p, the lower ids among equals."""

    top_p: float = setting(
        1.0,
        Real(0.0, 1.0, open_low=True),
        "Only the likeliest tokens that together reach this mass.",
        option=("--top-p",),
    )

    name = "top_p"
    place = 310
    keeps_argmax = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        from decodery.sampling.top import falling  # here, since it needs torch

        ordered, width = falling(rows), rows.shape[1]
        mass = ordered.softmax(dim=-1).cumsum(dim=-1)
        # A token is dropped when the mass of those before it already reaches p; the first always stays.
        border = torch.full((len(rows), 1), self.top_p, dtype=mass.dtype, device=mass.device)
        last = torch.searchsorted(mass, border).clamp_(max=width - 1)
        least = ordered.gather(1, last)
        kept = torch.where(rows < least, FORBIDDEN, rows)
        # Of those equal to the last, as many as there is room for. More are rare, and looked for row by row.
        following = ordered.gather(1, (last + 1).clamp_(max=width - 1))
        tied = (following == least) & (least > FORBIDDEN) & (last < width - 1)
        for row in tied[:, 0].nonzero().flatten().tolist():
            equal = (rows[row] == least[row]).nonzero().flatten()
            room = int(last[row]) + 1 - int((rows[row] > least[row]).sum())
            kept[row, equal[room:]] = FORBIDDEN
        return kept
