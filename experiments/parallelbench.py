"""ParallelBench: every decoder of canvases on the same samples, accuracy against tokens per forward.

The same entrants as `decodery suite parallelbench`. The oracle curve takes each sample's best threshold afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.parallelbench.suite import SuiteEntrant, default_entrants
from decodery.evaluation.parallelbench.tasks import TASKS, Sample
from experiments.canvases import ACCURACY, BY_GROUP, FORWARDS, decoding, loaded, samples_of

ORACLE = "oracle threshold"


@dataclass(frozen=True)
class Settings:
    model: str = "diffusion-lists"
    samples: int = 5
    tasks: tuple[str, ...] = tuple(TASKS)
    seed: int = 0


def _name(entrant: SuiteEntrant) -> str:
    return entrant.series if entrant.setting == "default" else f"{entrant.series} {entrant.setting}"


@cache
def _arms(settings: Settings) -> list[Arm]:
    """Both studies look at the same decodings."""
    lm = loaded(settings.model)
    kept: dict[tuple[str, str, str], dict[str, float]] = {}
    entrants = default_entrants()
    strict_first = sorted((e for e in entrants if e.threshold is not None), key=lambda e: -(e.threshold or 0.0))

    def decoded(entrant: SuiteEntrant, sample: Sample) -> dict[str, float]:
        key = (sample.task, sample.prompt, _name(entrant))
        if key not in kept:
            length = 32 if "\n" in sample.answer else 16
            kept[key] = dict(decoding(lm, "", entrant.on(length), length).measure(sample))
        return kept[key]

    def arm(entrant: SuiteEntrant) -> Arm:
        return Arm(_name(entrant), lambda sample: decoded(entrant, sample))

    def oracle(sample: Sample) -> dict[str, float]:
        tried = [decoded(entrant, sample) for entrant in strict_first]
        right = [told for told in tried if told["right"]]
        told = right[-1] if right else tried[0]
        return {name: value for name, value in told.items() if name != "seconds"}

    return [*(arm(entrant) for entrant in entrants), Arm(ORACLE, oracle)]


def overall(settings: Settings) -> Study:
    arms = _arms(settings)
    first = arms[0].name
    figures = (
        ACCURACY,
        Figure("tokens/forward", "positions", per="forwards"),
        FORWARDS,
        Figure("token forwards", "rows", form=".0f"),
        Figure("speed", "tokens", per="seconds", against=first, unit="x"),
        *BY_GROUP,
    )
    claims = [
        PublishedClaim(
            "two tokens per step cost accuracy where tokens depend on each other",
            "free lists",
            arms[1].name,
            first,
            above=False,
        ),
        PublishedClaim("and not where they do not", "ordered lists", arms[1].name, -0.05 + 1.0),
        PublishedClaim(
            "the oracle has more tokens per forward than 0.9 at no less accuracy",
            "tokens/forward",
            ORACLE,
            "threshold 0.9",
        ),
    ]
    return Study(
        "Fresh samples of all tasks, canvas 16, answers of several lines 32, greedy, one request at a time.",
        samples_of(settings.samples, settings.tasks),
        arms,
        figures,
        claims,
        "decoder",
        loaded(settings.model),
    )


def tasks(settings: Settings) -> Study:
    figures = [
        figure
        for task in settings.tasks
        for figure in (
            Figure(task, f"right, {task}", form=".0%", share=True),
            Figure(f"{task}, forwards", f"forwards, {task}", form=".1f"),
        )
    ]
    return Study(
        "The same by task: accuracy, and forwards of a sample.",
        samples_of(settings.samples, settings.tasks),
        _arms(settings),
        figures,
        arms_are="decoder",
        lm=loaded(settings.model),
    )


EXPERIMENT = Experiment(
    "parallelbench",
    "ParallelBench: accuracy against tokens per forward",
    "ParallelBench, 2025, arXiv 2510.04767",
    ("decodery.diffusion", "decodery.evaluation.parallelbench"),
    Settings(),
    {"overall": overall, "tasks": tasks},
)
