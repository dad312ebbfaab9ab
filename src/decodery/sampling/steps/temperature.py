"""How sharp the law is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.sampling.settings import Real, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix

TINY_TEMPERATURE = 1e-30


@dataclass(frozen=True)
class Temperature(Step):
    """Divides the scores. 0 is greedy decoding, a branch of its own: the highest score wins, the lowest token id among
    equals."""

    temperature: float = setting(0.0, Real(0.0), "0 is greedy decoding.", neutral=1.0, option=("--temperature", "-t"))

    name = "temperature"
    place = 200
    places: ClassVar[Mapping[str, float]] = {"llama.cpp": 400}
    makes_rows = True
    keeps_argmax = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        if self.temperature < TINY_TEMPERATURE:
            # The quotient would overflow. Shifted by the highest score, it is 0 there and falls to minus infinity elsewhere.
            return ((rows.double() - rows.amax(-1, keepdim=True)) / self.temperature).float()
        return rows / self.temperature
