"""No tail: the likeliest tokens, up to where the sorted law stops bending (Phung 2020, Tail Free Sampling; as llama.cpp had
it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.sampling.forbidding import FORBIDDEN, falling, keep_highest
from decodery.sampling.settings import Real, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix

FLAT = 1e-6
"""Where all curvatures together are less, each counts alike."""


@dataclass(frozen=True)
class TailFree(Step):
    """Sorts the probabilities, and cuts where the absolute second differences, as shares of their sum, exceed z together, but
    never at the first of them."""

    tail_free: float = setting(
        1.0,
        Real(0.0, 1.0, open_low=True),
        "Only tokens before the tail: the share of the sorted law's curvature that is kept.",
        aliases=("tfs_z", "tfs"),
        option=("--tail-free",),
    )

    name = "tail_free"
    place = 325
    places: ClassVar[Mapping[str, float]] = {"llama.cpp": 301}
    keeps_argmax = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        for row in rows:
            law = falling(row[row > FORBIDDEN][None])[0].softmax(dim=-1).double()
            if len(law) > 2:
                curvature = law.diff().diff().abs()
                total = float(curvature.sum())
                shares = curvature / total if total > FLAT else torch.full_like(curvature, 1 / len(curvature))
                beyond = (shares.cumsum(dim=-1) > self.tail_free)[1:].nonzero()
                if len(beyond):
                    keep_highest(row, 1 + int(beyond[0]))
        return rows
