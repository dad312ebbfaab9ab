"""FreeCache as a method: the base decoders with keys and values that are frozen once they are clean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from decodery.diffusion.masked_diffusion import MaskedDiffusionDecoding
from decodery.engine.method import Exactness, parameter


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
