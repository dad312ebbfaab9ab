"""LocalLeap: next to a token that is certain, a moderate confidence is enough.

Kong et al. (Kuaishou), Accelerating Diffusion LLM Inference via Local Determinism Propagation, 2025, arXiv 2510.07081. Around a
position that passes the strict threshold (an anchor) others usually have their final token already, at less confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from decodery.diffusion.base import Claim, DiffusionMethod
from decodery.diffusion.laws import descending
from decodery.diffusion.masked_diffusion import MaskedDiffusionDecoding
from decodery.diffusion.unmasking.fast_dllm import ByConfidence, reaching
from decodery.engine.method import Exactness, parameter
from decodery.errors import BadParameter

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.diffusion.unmasking.base import Rule
    from decodery.engine.request import Request


@dataclass(frozen=True)
class LocalThreshold(ByConfidence):
    """All offsets that reach `threshold`, the anchors; and those within `radius` of an anchor that reach `relaxed`.

    Distances count positions of the canvas, filled ones too. What the relaxed threshold admits is no anchor. Without anchors
    the surest offset alone.
    """

    threshold: float = 0.9
    relaxed: float = 0.75
    radius: int = 4

    def sure(self, confidence: Tensor, offsets: Sequence[int]) -> list[int]:
        anchors = reaching(confidence, self.threshold)
        if not anchors:
            return descending(confidence)[:1]
        return sorted({*anchors, *self.followers(confidence, offsets, anchors)})

    def followers(self, confidence: Tensor, offsets: Sequence[int], anchors: Sequence[int]) -> list[int]:
        """The places near an anchor that reach the relaxed threshold, ascending."""
        centres = [offsets[place] for place in anchors]
        return [
            place
            for place in reaching(confidence, self.relaxed)
            if any(abs(offsets[place] - centre) <= self.radius for centre in centres)
        ]


@dataclass(frozen=True)
class LocalLeap(DiffusionMethod):
    """Fill what passes a strict threshold, and near it also what passes a relaxed one."""

    name: ClassVar[str] = "localleap"
    title: ClassVar[str] = "LocalLeap"
    paper: ClassVar[str] = (
        "Kong et al., Accelerating Diffusion LLM Inference via Local Determinism Propagation, 2025, arXiv 2510.07081"
    )
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING

    threshold: float = parameter(0.9, "confidence of an anchor; above 1: one token per step", low=0.0)
    relaxed_threshold: float = parameter(0.75, "confidence near an anchor; at most the threshold", low=0.0)
    radius: int = parameter(4, "how far from an anchor is near, in positions", low=0)
    value_independent: bool = parameter(
        False, "positions are chosen by their law and not by the token drawn from it, at a temperature"
    )

    def check(self) -> None:
        if self.relaxed_threshold > self.threshold:
            raise BadParameter(
                f"localleap: relaxed_threshold {self.relaxed_threshold:g} is above the threshold {self.threshold:g}."
            )

    def claims(self) -> tuple[Claim, ...]:
        rule = MaskedDiffusionDecoding(
            rule="threshold",
            threshold=self.threshold,
            value_independent=self.value_independent,
            **self.canvas_parameters(),
        )
        alone = replace(self, threshold=max(self.threshold, 1.01))
        return (
            Claim("without a radius it is threshold decoding", replace(self, radius=0), rule),
            Claim(
                "with equal thresholds it is threshold decoding",
                replace(self, relaxed_threshold=self.threshold),
                rule,
            ),
            Claim("without anchors it fills one token per step", alone, replace(rule, threshold=1.01)),
        )

    def unmasking(self, request: Request) -> Rule:
        return LocalThreshold(self.value_independent, self.threshold, self.relaxed_threshold, self.radius)
