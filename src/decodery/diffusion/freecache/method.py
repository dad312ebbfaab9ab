"""FreeCache as a method: the base decoders with keys and values that are frozen once they are clean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from decodery.diffusion.base import Claim
from decodery.diffusion.masked_diffusion import MaskedDiffusionDecoding
from decodery.engine.method import Exactness, parameter

LONG = 1 << 30
"""A block length beyond any canvas."""


@dataclass(frozen=True)
class FreeCacheDecoding(MaskedDiffusionDecoding):
    """Compute the keys and values of the prompt once, and those of each finished block once more; forwards then score what
    is undecided alone, over a window that shrinks block by block."""

    name: ClassVar[str] = "freecache"
    title: ClassVar[str] = "FreeCache"
    paper: ClassVar[str] = "FlashDLM: efficient KV caching and guided diffusion, 2025, arXiv 2505.21467"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE

    cache: str = parameter(
        "freecache", "which keys and values are reused; another one is another method", choices=("freecache",)
    )

    def claims(self) -> tuple[Claim, ...]:
        plain = self.varied(rule="low_confidence", value_independent=False, end_tokens="free", steps=None)
        at_once = plain.varied(steps=1, block_length=LONG)
        uncached = MaskedDiffusionDecoding(self.gen_length, LONG, steps=1, cfg_scale=self.cfg_scale)
        return (
            Claim("a threshold above 1 is one token per step", plain.varied(rule="threshold", threshold=1.01), plain),
            Claim("the first forward is that without a cache", at_once, uncached),
        )
