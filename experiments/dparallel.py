"""dParallel: a model before and after certainty-forcing distillation, along the entropy threshold.

Controls that were trained otherwise, from cross-entropy alone or certainty alone, join where their folders are named:

decodery train dparallel --folder work-0 --artifact cross-entropy --beta 0
decodery train dparallel --folder work-1 --artifact certainty --imitation 0
python -m experiments run dparallel --controls cross-entropy certainty
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from decodery.diffusion.dparallel import DParallel
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.evaluation.parallelbench.tasks import TASKS, Sample, score
from experiments.canvases import ACCURACY, BY_GROUP, FORWARDS, FREE, counted, loaded, samples_of

LISTS = tuple(name for name, task in TASKS.items() if task.group == "lists")
ONE = -1.0
"""A threshold below every entropy."""


@dataclass(frozen=True)
class Settings:
    model: str = "diffusion-lists"
    taught: str = "diffusion-lists-dparallel"
    controls: tuple[str, ...] = ()
    samples: int = 40
    thresholds: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    canvas: int = 16
    sampled: int = 100
    seed: int = 3


def _models(settings: Settings) -> dict[str, str]:
    """Name in the table -> model."""
    return {"before": settings.model, "after": settings.taught, **{Path(c).name: c for c in settings.controls}}


def lists(settings: Settings) -> Study:
    method = cache(lambda threshold: DParallel(block_length=settings.canvas, threshold=threshold))

    @once_per_item
    def own(sample: Sample) -> list[int]:
        lm = loaded(settings.model)
        tokens: list[int] = lm.generate(sample.prompt, method(ONE), max_new_tokens=settings.canvas).token_ids
        return tokens

    def arm(name: str, model: str, threshold: float) -> Arm:
        def measure(sample: Sample) -> Mapping[str, float]:
            reply = loaded(model).generate(sample.prompt, method(threshold), max_new_tokens=settings.canvas)
            return {**counted(sample, reply), "own": float(reply.token_ids == own(sample))}

        return Arm(name, measure)

    arms, claims = [], []
    for name, model in _models(settings).items():
        if name in ("before", "after"):
            arms.append(arm(f"{name}, one token", model, ONE))
        arms += [arm(f"{name}, {threshold:g}", model, threshold) for threshold in settings.thresholds]
    for threshold in settings.thresholds:
        after, before = f"after, {threshold:g}", f"before, {threshold:g}"
        claims.append(
            PublishedClaim(f"training saves forwards at {threshold:g}", "forwards", after, before, above=False)
        )
        claims.append(PublishedClaim(f"and costs no accuracy at {threshold:g}", "accuracy", after, before))
    return Study(
        f"{settings.samples} samples of each list task, canvas and block {settings.canvas}, greedy; thresholds in nats.",
        samples_of(settings.samples, LISTS, settings.seed),
        arms,
        (ACCURACY, FORWARDS, Figure("as before by one token", "own", form=".1%", share=True), *BY_GROUP[:2]),
        claims,
        "model and threshold",
        loaded(settings.model),
    )


def answers(settings: Settings) -> Study:
    method = DParallel(block_length=settings.canvas, threshold=ONE)
    items = list(enumerate(samples_of(settings.sampled, FREE, settings.seed + 1)))

    def arm(name: str, model: str) -> Arm:
        def measure(item: tuple[int, Sample]) -> Mapping[str, float]:
            place, sample = item
            reply = loaded(model).generate(
                sample.prompt,
                method,
                max_new_tokens=settings.canvas,
                temperature=1.0,
                seed=settings.seed + place,
                logprobs=0,
            )
            told = [entry.processed for entry in reply.logprobs or []]
            right = float(score(sample, reply.text.strip()))
            return {"right": right, "nats": -sum(told), f"nats, {sample.task}": -sum(told)}

        return Arm(name, measure)

    nats = Figure("entropy of an answer, nats", "nats")
    by_task = tuple(Figure(task, f"nats, {task}") for task in FREE)
    return Study(
        f"{settings.sampled} samples of each task with many right answers, canvas {settings.canvas}, sampled at temperature 1, "
        "one token a step: what an answer costs the model that drew it, which is on average the entropy of its answers.",
        items,
        [arm(name, model) for name, model in _models(settings).items()],
        (ACCURACY, nats, *by_task),
        [PublishedClaim("training takes entropy from the answers", nats.name, "after", "before", above=False)],
        "model",
        loaded(settings.model),
    )


EXPERIMENT = Experiment(
    "dparallel",
    "dParallel: before and after certainty-forcing distillation",
    "Chen et al., dParallel, 2025, arXiv 2509.26488",
    ("decodery.diffusion.dparallel", "decodery.training.dparallel"),
    Settings(),
    {"lists": lists, "answers": answers},
)
