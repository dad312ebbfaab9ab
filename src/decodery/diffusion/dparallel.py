"""dParallel's decoding: in each step all tokens of whose law little is left to be decided.

Chen et al., dParallel: Learnable Parallel Decoding for dLLMs, 2025, arXiv 2509.26488, and the official code. The other half of
it is a model that has been trained to be certain of many tokens at once: `decodery.training.dparallel`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.diffusion.base import Claim, DiffusionMethod
from decodery.diffusion.laws import descending
from decodery.diffusion.masked_diffusion import MaskedDiffusionDecoding
from decodery.diffusion.unmasking.base import CanvasStep, Commit, Rule
from decodery.engine.method import Exactness, parameter

if TYPE_CHECKING:
    from decodery.diffusion.laws import Laws
    from decodery.engine.request import Request


@dataclass(frozen=True)
class EntropyThreshold(Rule):
    """All offsets whose law, the model's own, has an entropy of at most `threshold` nats, and always the lowest one."""

    threshold: float

    def choose(self, laws: Laws, step: CanvasStep) -> Commit:
        sureness = laws.rank("entropy")
        places = [place for place, value in enumerate(sureness.tolist()) if -value <= self.threshold]
        places = places or descending(sureness)[:1]
        return Commit.at(laws, places, laws.draw(places))


@dataclass(frozen=True)
class DParallel(DiffusionMethod):
    """Fill, in each step, all tokens whose law has little entropy: for models trained to be certain of many at once, as
    diffusion-lists-dparallel is, but any will do."""

    name: ClassVar[str] = "dparallel"
    title: ClassVar[str] = "dParallel"
    paper: ClassVar[str] = "Chen et al., dParallel: Learnable Parallel Decoding for dLLMs, 2025, arXiv 2509.26488"
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING

    threshold: float = parameter(
        0.5, "entropy in nats up to which a token is filled in; below 0: one per step", low=-1.0
    )

    def unmasking(self, request: Request) -> EntropyThreshold:
        return EntropyThreshold(self.threshold)

    def claims(self) -> tuple[Claim, ...]:
        one = self.varied(threshold=-1.0)
        plain = MaskedDiffusionDecoding(value_independent=True, **self.canvas_parameters())
        exact = one.varied(cache="none", cfg_scale=0.0)
        return (
            Claim("below 0 it fills one token per step, where the law has the lowest entropy", one, plain),
            Claim("the same at a temperature", one, plain, temperature=1.0),
            Claim("that is exact sampling", exact),
        )
