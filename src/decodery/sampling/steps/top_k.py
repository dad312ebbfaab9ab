"""Only the k likeliest tokens (Fan et al. 2018, arXiv 1805.04833)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.sampling.forbidding import forbid_below, kth_highest
from decodery.sampling.settings import Whole, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix


@dataclass(frozen=True)
class TopK(Step):
    """Forbids all but the k highest scores; those equal to the k-th are kept, as in transformers."""

    top_k: int = setting(0, Whole(0), "Only the k likeliest tokens; 0: all.", option=("--top-k",))

    name = "top_k"
    place = 300
    keeps_argmax = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        if self.top_k >= rows.shape[1]:
            return rows
        return forbid_below(rows, kth_highest(rows, self.top_k))
