"""A temperature that follows the entropy (kalomaze 2023, dynamic temperature; as in llama.cpp)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.sampling.entropy import entropies
from decodery.sampling.forbidding import FORBIDDEN
from decodery.sampling.settings import Real, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix

LEAST = 1e-30
"""A lower temperature is this one."""


@dataclass(frozen=True)
class DynamicTemperature(Step):
    """Scales the scores so that with the temperature, which comes right behind it, they are divided by

        low + (high - low) * (entropy / the most that as many tokens can have) ** exponent,

    low and high being the temperature minus (at least 0) and plus the range.
    """

    dynatemp_range: float = setting(
        0.0, Real(0.0), "How far from the temperature the entropy may move it.", option=("--dynatemp-range",)
    )
    dynatemp_exponent: float = setting(
        1.0,
        Real(0.0, open_low=True),
        "How the entropy moves it: the power of its share of the highest.",
        aliases=("dynatemp_exp",),
        option=("--dynatemp-exponent",),
    )

    name = "dynamic_temperature"
    place = 199
    places: ClassVar[Mapping[str, float]] = {"llama.cpp": 399}
    keeps_argmax = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        for row, prefix, entropy in zip(rows, prefixes, entropies(rows).tolist(), strict=True):
            left = int((row > FORBIDDEN).sum())
            if left < 2:
                continue
            middle = prefix.temperature
            low, high = max(0.0, middle - self.dynatemp_range), middle + self.dynatemp_range
            found = low + (high - low) * (entropy / math.log(left)) ** self.dynatemp_exponent
            # Counted from the highest score, nothing overflows where the temperature is next to nothing.
            row -= row.max()
            row *= middle / max(found, LEAST)
        return rows
