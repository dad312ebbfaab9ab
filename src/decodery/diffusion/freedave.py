"""FreeDave: a canvas drafts its own next states, and one batch of forwards says how many of them are right.

Free Draft-and-Verification: Toward Lossless Parallel Decoding for Diffusion Large Language Models, 2025, arXiv 2510.00294.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.diffusion.base import REGIMES, Claim
from decodery.diffusion.drafting import Drafting
from decodery.diffusion.masked_diffusion import MaskedDiffusionDecoding
from decodery.engine.method import Decoding, Exactness, parameter

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer

BATCH_CANVAS = 64
"""Up to this many positions, copies of the whole cache cost less than attention over all copies of a block."""
LAYOUTS = ("auto", "batch", "tree", "single")


@dataclass(frozen=True)
class FreeDave(MaskedDiffusionDecoding):
    """Reproduce a static decoder of a canvas in fewer forwards: its next states are drafted from the laws at hand and
    verified in one batch, whose laws are the next ones to draft from."""

    name: ClassVar[str] = "freedave"
    title: ClassVar[str] = "FreeDave"
    paper: ClassVar[str] = (
        "Free Draft-and-Verification: Toward Lossless Parallel Decoding for Diffusion Large Language Models, 2025, "
        "arXiv 2510.00294"
    )
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_STATIC
    drafting: ClassVar[type[Drafting]] = Drafting
    subset: ClassVar[bool] = False

    draft_steps: int = parameter(4, "states that are forwarded together", low=1, high=64)
    layout: str = parameter(
        "auto",
        "drafts in copies of the cache, or side by side in one forward; auto: batch up to 64 positions, else tree",
        choices=LAYOUTS,
    )
    # With a cache the static decoder computes all keys and values anew where a block begins: drafts beyond would see others.
    eager: bool = parameter(False, "drafts go on in the next blocks", only={"cache": "none"})

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        caches, states = super().caches(request), self.draft_steps
        if (
            self._layout(self.length(request)) == "tree"
        ):  # side by side behind the cache, each with all rows that it computes
            return [(network, rows * (1 + states)) for network, rows in caches]
        return caches * states

    def _layout(self, length: int) -> str:
        if self.layout != "auto":
            return self.layout
        return "batch" if length <= BATCH_CANVAS else "tree"

    def decode(self, request: Request) -> Decoding:
        plan = self.plan(request)
        layout = self._layout(plan.length)
        yield from self.drafting(request, plan, self.draft_steps, layout, self.eager, self.subset).run()

    def static(self) -> MaskedDiffusionDecoding:
        """The decoder whose canvas and order of commits are reproduced."""
        return MaskedDiffusionDecoding(
            **{item.name: getattr(self, item.name) for item in MaskedDiffusionDecoding.parameters()}
        )

    def claims(self) -> tuple[Claim, ...]:
        variants = {f"{layout} layout, cache {cache}": self.varied(layout=layout, cache=cache, eager=False)
                    for cache in REGIMES for layout in ("batch", "tree")}  # fmt: skip
        variants["eager"] = self.varied(cache="none", eager=True)
        free = self.varied(value_independent=True)
        return (
            Claim("the canvas of the static decoder", self, self.static()),
            *(
                Claim(f"the canvas of the static decoder, {label}", variant, variant.static())
                for label, variant in variants.items()
                if variant != self
            ),
            Claim("the same draws as the static decoder's, positions chosen by their laws", free, free.static(), 1.0),
            Claim(
                "one token per step, at a position chosen by its law alone, is exact sampling",
                free.varied(
                    rule="low_confidence",
                    value_independent=True,
                    steps=None,
                    tokens_per_step=None,
                    end_tokens="free",
                    cache="none",
                    cfg_scale=0.0,
                ),
            ),
        )


@dataclass(frozen=True)
class FreeDavePlusPlus(FreeDave):
    """Draft around the threshold rule, and jump to a draft as soon as all it fills is part of what the rule would fill."""

    name: ClassVar[str] = "freedave-plus-plus"
    title: ClassVar[str] = "FreeDave++"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    # Of several steps merged into one only those are, whose tokens agree with the rule's: close to it, but not the same.
    subset: ClassVar[bool] = True

    rule: str = parameter("threshold", "which masked positions are filled in a step", choices=("threshold", "factor"))
    threshold: float = parameter(
        0.95, "confidence at which a token is filled in; above 1: one per step", low=0.0, only={"rule": "threshold"}
    )

    def claims(self) -> tuple[Claim, ...]:
        static = self.varied(rule="threshold", threshold=1.01)
        return (Claim("with a threshold above 1 the canvas of one token per step", static, static.static()),)
