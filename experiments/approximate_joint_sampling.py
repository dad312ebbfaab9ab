"""Approximate joint sampling against as many tokens a step drawn from the forward alone, and against one token a step.

The law is enumerated on tables of conditional laws, where the layer is perfect. On `diffusion-lists` and `diffusion-stories`
layers that were trained join where their folders are named (--lists-layer, --stories-layer). All arms draw at temperature 1
with the same noise, at positions of lowest entropy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decodery.diffusion.approximate_joint_sampling.method import LAYER, ApproximateJointSampling
from decodery.engine.method import Method
from decodery.engine.settings import Settings as Decoding
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.parallelbench.tasks import Sample, make_samples, score
from decodery.evaluation.text_quality import coherence, diversity
from decodery.testing import denoising_language_model, exact_outputs, total_variation
from decodery.testing.perfect_layer import RowsOfTable, WithExactRows
from decodery.training.story_prompts import story_beginnings
from experiments.canvases import FORWARDS, loaded

TASKS = ("shuffle", "replace_random", "copy")


@dataclass(frozen=True)
class Settings:
    samples: int = 100
    canvas: int = 12
    stories: int = 100
    story_canvas: int = 24
    tokens: tuple[int, ...] = (2, 4)
    tables: int = 8
    lists_layer: str = ""
    stories_layer: str = ""
    seed: int = 1000


def _method(tokens: int, layer: str) -> ApproximateJointSampling:
    return ApproximateJointSampling(tokens_per_step=tokens, layer=layer)


def _arms(settings: Settings, layer: str) -> dict[str, ApproximateJointSampling]:
    found = {"one token": _method(1, "off")}
    for tokens in settings.tokens:
        found[f"{tokens} tokens, forward alone"] = _method(tokens, "off")
        if layer:
            found[f"{tokens} tokens, layer"] = _method(tokens, layer)
    return found


def _counted(stats: Any) -> dict[str, float]:
    calls = stats.models.get(LAYER)
    return {"forwards": float(stats.forwards), "layer calls": float(calls.forwards if calls else 0)}


CALLS = Figure("layer calls", "layer calls", form=".1f")


def tables(settings: Settings) -> Study:
    def arm(name: str, method: Method) -> Arm:
        def measure(seed: int) -> Mapping[str, float]:
            table = RowsOfTable.random(3, 3, seed)
            decoding = Decoding(temperature=1.0, max_new_tokens=3, seed=0)
            law = exact_outputs(denoising_language_model(table), method, [0, 1], decoding)
            return {"distance": total_variation(law, table.law())}

        return Arm(name, measure)

    arms = [arm("1 token", _method(1, "off"))]
    claims = []
    for tokens in (2, 3):
        alone, perfect = f"{tokens} tokens, forward alone", f"{tokens} tokens, perfect layer"
        arms += [arm(alone, _method(tokens, "off")), arm(perfect, WithExactRows(tokens_per_step=tokens))]
        claims.append(
            PublishedClaim(
                f"a perfect layer gives the joint law, {tokens} tokens", "off the joint law", perfect, 1e-5, False
            )
        )
        claims.append(PublishedClaim(f"the forward alone does not, {tokens} tokens", "off the joint law", alone, 1e-2))
    return Study(
        f"{settings.tables} random joint laws of three positions and three tokens, all branches enumerated: total variation "
        "from the joint law.",
        list(range(settings.tables)),
        arms,
        (Figure("off the joint law", "distance", form=".4f"),),
        claims,
        "decoder",
    )


def lists(settings: Settings) -> Study:
    lm = loaded("diffusion-lists")
    items = [
        (task, place, one) for task in TASKS for place, one in enumerate(make_samples(task, settings.samples, seed=2))
    ]

    def arm(name: str, method: Method) -> Arm:
        def measure(item: tuple[str, int, Sample]) -> Mapping[str, float]:
            task, place, sample = item
            reply = lm.generate(
                sample.prompt, method, max_new_tokens=settings.canvas, temperature=1.0, seed=settings.seed + place
            )
            right = float(score(sample, reply.text.strip()))
            return {"right": right, f"right, {task}": right, **_counted(reply.stats)}

        return Arm(name, measure)

    claims = []
    for tokens in settings.tokens:
        for task in TASKS:
            alone = f"{tokens} tokens, forward alone"
            claims.append(
                PublishedClaim(
                    f"{tokens} tokens of a forward alone cost {task} accuracy", task, alone, "one token", False
                )
            )
            if not settings.lists_layer:
                continue
            claims.append(
                PublishedClaim(
                    f"the layer gives more right answers than the forward alone: {task}, {tokens} tokens",
                    task,
                    f"{tokens} tokens, layer",
                    alone,
                )
            )
    return Study(
        f"{settings.samples} samples of each task, canvas {settings.canvas}, temperature 1, the same noise for all arms.",
        items,
        [arm(name, method) for name, method in _arms(settings, settings.lists_layer).items()],
        (*(Figure(task, f"right, {task}", form=".1%", share=True) for task in TASKS), FORWARDS, CALLS),
        claims,
        "decoder",
        lm,
    )


def stories(settings: Settings) -> Study:
    lm = loaded("diffusion-stories")
    judge = loaded("stories-twin")
    # Beginnings that no layer was trained behind.
    items: Sequence[tuple[int, str]] = [
        (place, text) for place, (_, text) in enumerate(story_beginnings(settings.stories, settings.seed))
    ]

    def arm(name: str, method: Method) -> Arm:
        def measure(item: tuple[int, str]) -> Mapping[str, float]:
            place, text = item
            reply = lm.generate(
                text, method, max_new_tokens=settings.story_canvas, temperature=1.0, seed=settings.seed + place
            )
            tokens = reply.token_ids
            told = {**_counted(reply.stats), "diversity": diversity(tokens)}
            if tokens:
                told["bits"] = -coherence(judge, lm.tokenize(text), tokens) / 0.6931471805599453
            return told

        return Arm(name, measure)

    bits = "bits per token to the twin"
    claims = []
    for tokens in settings.tokens:
        layer, alone = f"{tokens} tokens, layer", f"{tokens} tokens, forward alone"
        claims.append(PublishedClaim(f"{tokens} tokens of a forward alone are less likely", bits, alone, "one token"))
        if settings.stories_layer:
            claims.append(
                PublishedClaim(f"the layer's texts are likelier, {tokens} tokens", bits, layer, alone, above=False)
            )
    return Study(
        f"{settings.stories} beginnings of stories, canvas {settings.story_canvas}, temperature 1; bits per token of what is "
        "written, to the autoregressive stories-twin.",
        items,
        [arm(name, method) for name, method in _arms(settings, settings.stories_layer).items()],
        (Figure(bits, "bits"), Figure("diversity", "diversity"), FORWARDS, CALLS),
        claims,
        "decoder",
        lm,
    )


EXPERIMENT = Experiment(
    "approximate_joint_sampling",
    "Approximate joint sampling against the forward alone",
    "Enabling Approximate Joint Sampling in Diffusion LMs, 2025, arXiv 2509.22738",
    ("decodery.diffusion.approximate_joint_sampling", "decodery.diffusion.loop"),
    Settings(),
    {"tables": tables, "lists": lists, "stories": stories},
)
