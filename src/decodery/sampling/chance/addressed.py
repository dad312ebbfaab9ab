"""The default: each draw is a hash of seed, sample and its address."""

from __future__ import annotations

from dataclasses import dataclass

from decodery.sampling.chance.base import DrawnSample, Source
from decodery.sampling.noise import Chance, Noise


@dataclass(frozen=True)
class Addressed(Source):
    """Noise of a seed and a sample (`sampling/noise.py`): samples are independent, and draws depend on nothing but their
    address."""

    name = "addressed"
    summary = "Independent samples by inverse transform; each draw is a hash of seed, sample and address."

    def chance(self, sample: DrawnSample) -> Chance:
        return Noise(sample.seed, sample.number)
