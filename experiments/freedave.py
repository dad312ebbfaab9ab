"""FreeDave against its static decoders: accuracy, forwards, token forwards and identical canvases.

`steps`: draft steps from 1 to 16. `caches`: regimes, layouts, tokens per step and eager drafts at 4 draft steps. `threshold`:
FreeDave++ beside the threshold rule. `sampling`: a fixed table of noise. `bfloat16`: how often rounding changes a canvas, in a
batch, as a tree, and forwarded one by one. Every number stands beside that of the same arm's static decoder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from decodery.diffusion.freedave import FreeDave
from decodery.engine.registry import method as as_method
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.parallelbench.tasks import TASKS, Sample, make_samples, score
from decodery.replies import Reply
from experiments.canvases import ACCURACY, FORWARDS, loaded

LISTS = tuple(name for name, task in TASKS.items() if task.group == "lists")


@dataclass(frozen=True)
class Settings:
    model: str = "diffusion-lists"
    tasks: tuple[str, ...] = LISTS
    samples: int = 6
    canvas: int = 16
    block: int = 8
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Place:
    """A sample and its number, which is the seed of its noise."""

    sample: Sample
    number: int


FIGURES = (
    ACCURACY,
    Figure("of the static decoder", "static right", form=".1%", share=True),
    FORWARDS,
    Figure("static forwards", "static forwards", form=".1f"),
    Figure("token forwards", "rows", form=".0f"),
    Figure("static token forwards", "static rows", form=".0f"),
    Figure("filled per forward", "filled", per="forwards"),
    Figure("identical", "identical", form=".1%", share=True),
    Figure("never more forwards", "never more", form=".1%", share=True),
    Figure("static time / time", "static seconds", per="seconds"),
)


def _study(settings: Settings, specs: Sequence[str], dtype: str = "float32", sampled: bool = False) -> Study:
    lm = loaded(settings.model, dtype)
    kept: dict[tuple[str, int], tuple[Reply, float]] = {}

    def decoded(spec: str, place: Place) -> tuple[Reply, float]:
        start = time.perf_counter()
        reply = lm.generate(
            place.sample.prompt,
            spec,
            temperature=settings.temperature if sampled else 0.0,
            seed=settings.seed + place.number,
            max_new_tokens=settings.canvas,
        )
        return reply, time.perf_counter() - start

    def arm(spec: str) -> Arm:
        method = as_method(spec)
        assert isinstance(method, FreeDave)
        static = method.static().spec()

        def measure(place: Place) -> Mapping[str, float]:
            key = (static, place.number)
            if key not in kept:
                kept[key] = decoded(static, place)
            (reply, seconds), (plain, plain_seconds) = decoded(spec, place), kept[key]
            same = reply.token_ids == plain.token_ids and reply.stats.step_of == plain.stats.step_of
            return {
                "right": float(score(place.sample, reply.text.strip())),
                "static right": float(score(place.sample, plain.text.strip())),
                "forwards": float(reply.stats.forwards),
                "static forwards": float(plain.stats.forwards),
                "rows": float(reply.stats.rows),
                "static rows": float(plain.stats.rows),
                "filled": float(sum(step >= 0 for step in reply.stats.step_of)),
                "identical": float(same),
                "never more": float(reply.stats.forwards <= plain.stats.forwards),
                "seconds": seconds,
                "static seconds": plain_seconds,
            }

        return Arm(spec, measure)

    samples = [sample for task in settings.tasks for sample in make_samples(task, settings.samples)]
    claims = []
    if dtype == "float32":
        claims = [PublishedClaim("the canvas is the static decoder's", "identical", s, every=True) for s in specs]
        claims = [claim for claim in claims if "plus-plus" not in claim.arm]
        claims += [PublishedClaim("never more forwards than there", "never more forwards", specs[-1], every=True)]
    about = f"Canvas {settings.canvas}, {f'temperature {settings.temperature}' if sampled else 'greedy'}, {dtype}."
    places = [Place(sample, number) for number, sample in enumerate(samples)]
    return Study(about, places, [arm(spec) for spec in specs], FIGURES, claims, lm=lm)


def steps(settings: Settings) -> Study:
    return _study(settings, [f"freedave(block_length={settings.block}, draft_steps={n})" for n in (1, 2, 4, 8, 16)])


def caches(settings: Settings) -> Study:
    base = f"block_length={settings.block}"
    found = [
        f"freedave({base}, cache={cache}, layout={layout}, tokens_per_step={count})"
        for cache in ("none", "prefix", "dual")
        for layout in ("batch", "tree")
        for count in (1, 2)
    ]
    return _study(settings, [*found, f"freedave({base}, eager=True)", f"freedave({base}, eager=True, draft_steps=8)"])


def threshold(settings: Settings) -> Study:
    base = f"block_length={settings.block}, rule=threshold"
    names = ("freedave", "freedave-plus-plus")
    return _study(settings, [f"{name}({base}, threshold={level})" for level in (0.8, 0.95) for name in names])


def sampling(settings: Settings) -> Study:
    base = f"block_length={settings.block}, value_independent=True"
    return _study(settings, [f"freedave({base}, rank={rank})" for rank in ("entropy", "margin")], sampled=True)


def rounding(settings: Settings) -> Study:
    base = f"block_length={settings.block}"
    return _study(
        settings, [f"freedave({base}, layout={layout})" for layout in ("batch", "tree", "single")], "bfloat16"
    )


EXPERIMENT = Experiment(
    "freedave",
    "FreeDave against its static decoders",
    "Free Draft-and-Verification, 2025, arXiv 2510.00294",
    ("decodery.diffusion.freedave", "decodery.diffusion.drafting", "decodery.diffusion.loop"),
    Settings(),
    {"steps": steps, "caches": caches, "threshold": threshold, "sampling": sampling, "bfloat16": rounding},
)
