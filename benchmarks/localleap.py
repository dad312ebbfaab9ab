"""LocalLeap against threshold decoding, and against as many extra tokens chosen without regard to where they are.

    python benchmarks/localleap.py --samples 100 --by-task

"above" is the accuracy over that of the threshold curve at the same number of forwards. The controls commit exactly as many
extra tokens as LocalLeap would in each step, but draw them from all masked positions of the block between the two thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from canvas_study import Study, accuracy_at, arguments

from decodery.diffusion.localleap import LocalLeap, LocalThreshold
from decodery.diffusion.unmasking.base import without_replacement
from decodery.diffusion.unmasking.fast_dllm import reaching

THRESHOLDS = (0.75, 0.8, 0.85, 0.9, 0.95)
RADII = (1, 2, 4, 8)
SEEDS = 3


@dataclass(frozen=True)
class AnywhereThreshold(LocalThreshold):
    """As many extra tokens as `LocalThreshold`, drawn from all positions that reach the relaxed threshold only."""

    noise: object = None

    def choose(self, laws, step):
        object.__setattr__(self, "noise", (laws.chance, step))
        return super().choose(laws, step)

    def followers(self, confidence, offsets: Sequence[int], anchors: Sequence[int]) -> list[int]:
        chance, step = self.noise
        extra = len(set(super().followers(confidence, offsets, anchors)) - set(anchors))
        moderate = sorted(set(reaching(confidence, self.relaxed)) - set(anchors))
        weights = confidence.new_ones(len(moderate))
        return [moderate[place] for place in without_replacement(chance, weights, extra, step)]


@dataclass(frozen=True)
class Anywhere(LocalLeap):
    """LocalLeap without locality."""

    def unmasking(self, request):
        return AnywhereThreshold(False, self.threshold, self.relaxed_threshold, self.radius)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--block", type=int, default=32, help="positions of a block (default: 32, no blocks)")
    options = parser.parse_args()
    study = Study(options)
    block = f"block_length={options.block}"
    study.heading()
    curve = []
    for threshold in THRESHOLDS:
        curve.append(
            study.run(f"masked-diffusion(rule=threshold, threshold={threshold}, {block})", f"threshold {threshold}")
        )
        study.line(curve[-1])
    kept = []
    for radius in RADII:
        row = study.run(f"localleap(radius={radius}, {block})", f"localleap .9/.75 radius {radius}")
        study.line(row, f"   above {100 * (row.accuracy - accuracy_at(curve, row.forwards)):+.2f}")
        kept.append(row)
        controls = []
        for seed in range(SEEDS):
            method = Anywhere(radius=radius, block_length=options.block)
            controls.append(study.run(method, f"  as many anywhere, seed {seed}", seed=seed))
        accuracy = sum(control.accuracy for control in controls) / SEEDS
        forwards = sum(control.forwards for control in controls) / SEEDS
        for control in controls:
            study.line(control)
        above = accuracy - accuracy_at(curve, forwards)
        print(f"  mean of the controls: {100 * accuracy:.2f} @ {forwards:.2f}, above {100 * above:+.2f}", flush=True)
    study.by_task([curve[3], *kept])
    study.write()


if __name__ == "__main__":
    main()
