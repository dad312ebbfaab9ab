"""LocalLeap against threshold decoding, and against as many extra tokens chosen without regard to where they are.

"above the curve" is the accuracy over that of the threshold curve at the same number of forwards. The controls commit exactly
as many extra tokens as LocalLeap would in each step, but draw them from all masked positions of the block between the two
thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decodery.diffusion.localleap import LocalLeap, LocalThreshold
from decodery.diffusion.unmasking.base import without_replacement
from decodery.diffusion.unmasking.fast_dllm import reaching
from decodery.evaluation.experiment import Arm, Experiment, PublishedClaim, Study
from experiments.canvases import ACCURACY, BY_GROUP, FORWARDS, above_curve, decoding, loaded, samples_of


@dataclass(frozen=True)
class Settings:
    samples: int = 20
    thresholds: tuple[float, ...] = (0.75, 0.8, 0.85, 0.9, 0.95)
    radii: tuple[int, ...] = (1, 2, 4, 8)
    controls: int = 1
    block: int = 32
    canvas: int = 32
    seed: int = 0


@dataclass(frozen=True)
class AnywhereThreshold(LocalThreshold):
    """As many extra tokens as `LocalThreshold`, drawn from all positions that reach the relaxed threshold only."""

    noise: Any = None

    def choose(self, laws: Any, step: Any) -> Any:
        object.__setattr__(self, "noise", (laws.chance, step))
        return super().choose(laws, step)

    def followers(self, confidence: Any, offsets: Sequence[int], anchors: Sequence[int]) -> list[int]:
        chance, step = self.noise
        extra = len(set(super().followers(confidence, offsets, anchors)) - set(anchors))
        moderate = sorted(set(reaching(confidence, self.relaxed)) - set(anchors))
        weights = confidence.new_ones(len(moderate))
        return [moderate[place] for place in without_replacement(chance, weights, extra, step)]


@dataclass(frozen=True)
class Anywhere(LocalLeap):
    """LocalLeap without locality."""

    def unmasking(self, request: Any) -> AnywhereThreshold:
        return AnywhereThreshold(False, self.threshold, self.relaxed_threshold, self.radius)


def study(settings: Settings) -> Study:
    lm, block, canvas = loaded("diffusion-lists"), f"block_length={settings.block}", settings.canvas
    curve = [f"threshold {threshold:g}" for threshold in settings.thresholds]
    arms: list[Arm] = [
        decoding(lm, name, f"masked-diffusion(rule=threshold, threshold={threshold}, {block})", canvas)
        for name, threshold in zip(curve, settings.thresholds, strict=True)
    ]
    claims: list[PublishedClaim] = []
    for radius in settings.radii:
        name = f"radius {radius}"
        arms.append(decoding(lm, name, f"localleap(radius={radius}, {block})", canvas))
        claims.append(PublishedClaim(f"radius {radius} is above the curve of thresholds", "above the curve", name, 0.0))
        for seed in range(settings.controls):
            method = Anywhere(radius=radius, block_length=settings.block)
            arms.append(decoding(lm, f"as many anywhere, {radius}, seed {seed}", method, canvas, settings.seed + seed))
            claims.append(
                PublishedClaim(
                    "nearness to a sure token is what counts",
                    "above the curve",
                    name,
                    f"as many anywhere, {radius}, seed {seed}",
                )
            )
    figures = (ACCURACY, FORWARDS, above_curve(curve), *BY_GROUP)
    return Study(
        f"Samples of all tasks, canvas {canvas}, blocks of {settings.block}, greedy; LocalLeap at thresholds 0.9 and 0.75.",
        samples_of(settings.samples),
        arms,
        figures,
        claims,
        "decoder",
        lm,
    )


EXPERIMENT = Experiment(
    "localleap",
    "LocalLeap against thresholds, and against as many tokens anywhere",
    "Kong et al., LocalLeap, 2025, arXiv 2510.07081",
    ("decodery.diffusion.localleap", "decodery.diffusion.unmasking.fast_dllm", "decodery.diffusion.loop"),
    Settings(),
    {"radii": study},
)
