"""Mirostat: truncation that keeps the surprise of a text where it is wanted (Basu et al. 2021, arXiv 2007.14966; as in
llama.cpp)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.sampling.forbidding import FORBIDDEN, keep_highest
from decodery.sampling.settings import Real, Whole, setting
from decodery.sampling.steps.base import StatefulStep

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from decodery.sampling.prefix import Prefix

LIKELIEST = 100
"""Tokens by which version 1 estimates how fast the law falls (the paper's m)."""


@dataclass(frozen=True)
class Mirostat(StatefulStep):
    """Allows tokens up to a surprise, in bits, that begins at twice the wanted one and moves against the surprise of each token
    that is taken. Version 2 forbids what is more surprising, version 1 keeps the k likeliest tokens, k estimated from a power
    law. llama.cpp leaves out other truncation beside it; here what is set acts."""

    mirostat: int = setting(0, Whole(0, 2), "Its version, 1 or 2; 0: off.", option=("--mirostat",))
    mirostat_tau: float = setting(
        5.0, Real(0.0), "The wanted surprise, in bits.", aliases=("mirostat_ent",), option=("--mirostat-tau",)
    )
    mirostat_eta: float = setting(
        0.1,
        Real(0.0),
        "How fast what is allowed follows what was taken.",
        aliases=("mirostat_lr",),
        option=("--mirostat-eta",),
    )

    name = "mirostat"
    place = 390
    places: ClassVar[Mapping[str, float]] = {"llama.cpp": 410}
    keeps_argmax = True

    def begin(self, prompt: Sequence[int]) -> float:
        return 2 * self.mirostat_tau

    def advance(self, state: float, scores: Tensor, token: int) -> float:
        surprise = -float(scores.double().log_softmax(dim=-1)[token]) / math.log(2)
        # What its own law forbids can come from elsewhere, such as a canvas or a prompt that goes on.
        return state - self.mirostat_eta * (surprise - self.mirostat_tau) if math.isfinite(surprise) else state

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        for row, prefix in zip(rows, prefixes, strict=True):
            allowed = prefix.state(self)
            if self.mirostat == 1:
                keep_highest(row, _likeliest(row, allowed))
            else:
                law = row.log_softmax(dim=-1)
                row.masked_fill_((-law / math.log(2) > allowed) & (row < row.max()), FORBIDDEN)
        return rows


def _likeliest(row: Float[Tensor, "vocabulary"], allowed: float) -> int:
    """How many of the likeliest tokens have a surprise of at most `allowed` bits, were the law a power of the rank."""
    law = row.topk(min(LIKELIEST, int((row > FORBIDDEN).sum()))).values.double().log_softmax(dim=-1)
    size = len(row)
    if len(law) < 2:
        return 1
    ranks = torch.arange(2, len(law) + 1, dtype=torch.float64, device=row.device)
    steps = (ranks / (ranks - 1)).log()
    slope = float((steps * (law[:-1] - law[1:])).sum() / (steps * steps).sum())
    excess = slope - 1
    # excess / (1 - size ** -excess), which has a limit at an excess of 0.
    share = -math.expm1(-excess * math.log(size))
    weight = excess / share if abs(excess) > 1e-9 else 1 / math.log(size)
    logarithm = math.log(weight) + allowed * math.log(2)
    if slope <= 0:
        return size if logarithm > 0 else 1
    return max(1, int(math.exp(min(logarithm / slope, math.log(size)))))
