"""XTC: now and then the likeliest tokens are left out, but for the least likely of them (p-e-w 2024,
text-generation-webui#6335; as in llama.cpp)."""

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
class ExcludeTopChoices(Step):
    """With the given probability, at each position by itself, forbids every token that reaches the threshold but the least
    likely of them, the highest id among equals. So something else than the likeliest comes in greedy decoding too."""

    xtc_probability: float = setting(
        0.0, Real(0.0, 1.0), "How often the top choices are excluded.", option=("--xtc-probability",)
    )
    xtc_threshold: float = setting(
        0.1,
        Real(0.0, 0.5),
        "How likely a token must be to be one of them; above 0.5 there is never more than one.",
        option=("--xtc-threshold",),
    )

    name = "xtc"
    place = 360
    draws = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        for row, prefix in zip(rows, prefixes, strict=True):
            law = row.softmax(dim=-1)
            top = ((law >= self.xtc_threshold) & (row > FORBIDDEN)).nonzero()[:, 0]
            if len(top) > 1 and prefix.accept(self, self.xtc_probability):
                least = len(top) - 1 - int(law[top].flip(0).argmin())
                row[top[top != top[least]]] = FORBIDDEN
        return rows
