"""SchED's three shapes against a constant threshold, Prophet and threshold decoding: accuracy, forwards, QPS.

Thresholds are the published ones and those of a calibration on prompts that are not measured. QPS is the speed-up in forwards
over the sampler without an exit, times the share of its accuracy that is left to the fourth power.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from decodery.diffusion.sched.margins import quality_penalised_speed
from decodery.evaluation.experiment import Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.intervals import Array
from decodery.evaluation.parallelbench.tasks import TASKS, make_samples
from decodery.training.exit_thresholds import MEANS, PROMPTS, calibrate
from experiments.canvases import ACCURACY, BY_GROUP, FORWARDS, decoding, loaded, samples_of

NO_EXIT = "no exit"
SHAPES = ("linear", "cosine", "exponential")


@dataclass(frozen=True)
class Settings:
    samples: int = 12
    block: int = 32
    canvas: int = 32
    cache: str = "none"
    sampler: str = "masked-diffusion"
    percentiles_of: str = MEANS
    seed_of_calibration: int = 12345
    seed: int = 0


def study(settings: Settings) -> Study:
    lm, shared = loaded("diffusion-lists"), f"block_length={settings.block}, cache={settings.cache}"
    per_task = -(-PROMPTS // len(TASKS))
    drawn = [s.prompt for task in TASKS for s in make_samples(task, per_task, seed=settings.seed_of_calibration)]
    prompts = [lm.tokenize(prompt) for prompt in drawn[:PROMPTS]]
    found = calibrate(lm, prompts, gen_length=settings.canvas, of=settings.percentiles_of)
    opening = f"sampler='{settings.sampler}', {shared}"
    specs = {NO_EXIT: f"sched({opening}, threshold_high=inf, threshold_low=inf)"}
    pairs = {
        "published": (7.5, 2.5),
        "published, to 0": (7.5, 0.0),
        "calibrated": (found.high, found.low),
        "calibrated, to 0": (found.high, 0.0),
    }
    for name, (high, low) in pairs.items():
        levels = f"threshold_high={high}, threshold_low={low}"
        for shape in SHAPES:
            specs[f"{shape}, {name}"] = f"sched({opening}, shape={shape}, {levels})"
        specs[f"linear, {name}, no gate"] = f"sched({opening}, {levels}, stability_gate=False)"
        specs[f"linear, {name}, ends left out"] = f"sched({opening}, {levels}, ends=left_out)"
    levels = f"threshold_high={found.high}, threshold_low={found.low}"
    for slope in (2.0, 16.0):
        specs[f"exponential, slope {slope:g}, calibrated"] = (
            f"sched({opening}, shape=exponential, slope={slope}, {levels})"
        )
    for label, level in {"7.5": 7.5, "5": 5.0, "2.5": 2.5, "high": found.high, "low": found.low}.items():
        specs[f"constant {label}"] = f"sched({opening}, threshold_high={level}, threshold_low={level})"
    specs["prophet, published"] = f"sched({opening}, shape=prophet)"
    specs["prophet, calibrated"] = f"sched({opening}, shape=prophet, {levels})"
    for threshold in (0.7, 0.8, 0.9, 0.95):
        specs[f"threshold {threshold}"] = f"masked-diffusion(rule=threshold, threshold={threshold}, {shared})"
    faster = Figure(
        "fewer forwards", derive=lambda look, arm: look(NO_EXIT, "forwards") / look(arm, "forwards"), unit="x"
    )

    def penalised(look: Callable[[str, str], Array], arm: str) -> Array:
        told = zip(look(arm, "fewer forwards"), look(arm, "accuracy"), look(NO_EXIT, "accuracy"), strict=True)
        return np.array([quality_penalised_speed(*each) for each in told])

    claims = [
        PublishedClaim("fewer forwards than without an exit", "fewer forwards", name, 1.0) for name in list(specs)[1:4]
    ]
    claims += [
        PublishedClaim(
            "accuracy is kept, to half a point (published thresholds)",
            "accuracy lost",
            "linear, published",
            0.005,
            False,
        ),
        PublishedClaim(
            "accuracy is kept, to half a point (calibrated)", "accuracy lost", "linear, calibrated", 0.005, False
        ),
    ]
    lost = Figure(
        "accuracy lost",
        derive=lambda look, arm: look(NO_EXIT, "accuracy") - look(arm, "accuracy"),
        form="+.1%",
        share=True,
    )
    return Study(
        f"Samples of all tasks, canvas {settings.canvas}, one token per step, blocks of {settings.block}; calibrated "
        f"thresholds {found.high:.1f} and {found.low:.1f}, from {len(prompts)} other prompts.",
        samples_of(settings.samples),
        [decoding(lm, name, spec, settings.canvas) for name, spec in specs.items()],
        (ACCURACY, FORWARDS, faster, lost, Figure("QPS", derive=penalised), *BY_GROUP),
        claims,
        "exit",
        lm,
    )


EXPERIMENT = Experiment(
    "sched",
    "SchED's shapes against constant thresholds, Prophet and threshold decoding",
    "Mohamed et al., SchED, 2025, arXiv 2512.02892",
    ("decodery.diffusion.sched", "decodery.diffusion.loop", "decodery.training.exit_thresholds"),
    Settings(),
    {"exits": study},
)
