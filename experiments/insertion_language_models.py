"""Insertion language models of star graphs beside models of other kinds of the same size, trained on the same graphs.

"stars": fresh graphs, decoded greedily; the same insertion model also with the gap forced to the rightmost one. "holes":
of fresh graphs a stretch of the path is missing, whose length nobody says. "held out": what the insertion model has on fresh
graphs with words dropped beside an ideal model, and whether its stop head is surer of a whole text than of one that misses
a word.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.insertion_check import built
from decodery.evaluation.intervals import Array
from decodery.evaluation.planning.tasks import floor
from decodery.evaluation.planning.words import BEGIN, HOLE, Puzzle
from decodery.models.catalogue import ARTIFACTS
from decodery.training.insertion_language_models import INSERTIONS, PlanningData, puzzles, row
from decodery.training.insertion_network import InsertionLlama
from decodery.training.insertions import COMPLETE, MISSING, drop, joint_costs
from decodery.training.masking import collate
from experiments.canvases import loaded

EXACT = Figure("exact", "exact", form=".1%", share=True)
FORWARDS = Figure("forwards", "forwards", form=".1f")
INSERTING, RIGHTMOST = "insertions", "insertions, rightmost gap"
FREE_METHOD, RIGHTMOST_METHOD = "insertion-language-models", "insertion-language-models(gaps=rightmost)"


@dataclass(frozen=True)
class Settings:
    graphs: int = 500
    model: str = "insertion-stars"
    others: tuple[str, ...] = ("stars-twin",)
    sizes: tuple[str, ...] = ("arms-of-3",)
    seed: int = 1


@dataclass(frozen=True)
class Graph:
    """A fresh graph. number: among those of its size."""

    size: str
    number: int
    puzzle: Puzzle


def graphs_of(settings: Settings) -> list[Graph]:
    return [
        Graph(size, number, puzzle)
        for size in settings.sizes
        for number, puzzle in enumerate(puzzles(size, settings.graphs, settings.seed))
    ]


def answering(name: str, model: str, method: str) -> Arm:
    """An arm that answers graphs greedily."""
    lm = loaded(model)
    causal = lm.network.insertions is None

    def measure(graph: Graph) -> dict[str, float]:
        text = " ".join(graph.puzzle.prompt)
        prompt = f"<class> {text} {BEGIN}" if causal else text  # as each of them was trained
        reply = lm.generate(prompt, method, max_new_tokens=2 * len(graph.puzzle.answer), seed=0)
        exact = float(tuple(reply.text.split()) == graph.puzzle.answer)
        return {"exact": exact, f"exact, {graph.size}": exact, "forwards": float(reply.stats.forwards)}

    return Arm(name, measure)


def stars(settings: Settings) -> Study:
    lm = loaded(settings.model)
    arms = [
        answering(INSERTING, settings.model, FREE_METHOD),
        answering(RIGHTMOST, settings.model, RIGHTMOST_METHOD),
        *(answering(other, other, loaded(other).default_method) for other in settings.others),
    ]
    claims = [
        PublishedClaim("insertions find the path more often than writing from left to right", "exact", INSERTING, other)
        for other in (RIGHTMOST, *settings.others)
    ]
    sizes = tuple(Figure(f"exact, {size}", f"exact, {size}", form=".1%", share=True) for size in settings.sizes[1:])
    return Study(
        f"{settings.graphs} fresh star graphs of each size ({', '.join(settings.sizes)}), greedy.",
        graphs_of(settings),
        arms,
        (EXACT, *sizes, FORWARDS),
        claims,
        "model",
        lm,
    )


@dataclass(frozen=True)
class Gap:
    """A graph whose path misses the words in [start, end)."""

    graph: Graph
    start: int
    end: int


def gaps_of(settings: Settings) -> list[Gap]:
    """One gap of at least one word for each graph, of any length."""
    found = []
    for graph in graphs_of(settings):
        generator = random.Random(f"gap {graph.size} {graph.number}")
        start, end = sorted(generator.sample(range(len(graph.puzzle.answer) + 1), 2))
        found.append(Gap(graph, start, end))
    return found


def holes(settings: Settings) -> Study:
    lm = loaded(settings.model)

    def measure(gap: Gap) -> dict[str, float]:
        puzzle = gap.graph.puzzle
        before, missing, behind = (puzzle.answer[part] for part in _parts(gap))
        prompt = " ".join((*puzzle.prompt, BEGIN, *before, HOLE, *behind, HOLE))
        reply = lm.generate(prompt, FREE_METHOD, max_new_tokens=len(behind) + 2 * len(puzzle.answer), seed=0)
        tokens, steps = built(reply)
        given = [token for token, step in zip(tokens, steps, strict=True) if step < 0]
        first, *behind_it = reply.stats.details[
            "fills"
        ]  # where nothing stands behind the gap, it is one with the open end
        length = float(len(first))
        return {
            "exact": float(lm.tokenizer.decode(first).split() == list(missing) and not any(behind_it)),
            "given kept": float(given == lm.encode(" ".join(behind))),
            "length": length,
            "missing": float(len(missing)),
            "right length": float(length == len(missing)),
        }

    lengths = Figure("spread of lengths", "length", statistic=_spread)
    return Study(
        f"{settings.graphs} fresh star graphs of each size with a gap of any length in the path, and an open end behind it.",
        gaps_of(settings),
        [Arm(INSERTING, measure)],
        (
            EXACT,
            Figure("right length", "right length", form=".1%", share=True),
            Figure("given kept", "given kept", form=".1%", share=True),
            Figure("length", "length"),
            Figure("missing", "missing"),
            lengths,
        ),
        [
            PublishedClaim("what is given stays as it is, in its order", "given kept", INSERTING, every=True),
            PublishedClaim("holes are filled with texts of different lengths", "spread of lengths", INSERTING, 0.0),
        ],
        "model",
        lm,
    )


def _spread(weights: Array, lengths: Array, _: Array) -> Array:
    """The standard deviation of lengths, by the items' weights."""
    shares = weights / weights.sum(1, keepdims=True)
    spread: Array = np.sqrt(np.maximum(shares @ lengths**2 - (shares @ lengths) ** 2, 0.0))
    return spread


def _parts(gap: Gap) -> tuple[slice, slice, slice]:
    return slice(0, gap.start), slice(gap.start, gap.end), slice(gap.end, None)


@cache
def network_of(model: str) -> InsertionLlama:
    return InsertionLlama.read(ARTIFACTS / model)


def held_out(settings: Settings) -> Study:
    network = network_of(settings.model)
    words = PlanningData(settings.sizes).words

    @torch.no_grad()
    def measure(graph: Graph) -> dict[str, float]:
        generator = torch.Generator().manual_seed(graph.number)
        batch = collate([row(graph.puzzle, words, INSERTIONS)])
        dropped = drop(batch, generator)
        logits, _ = network.scores(dropped.tokens, dropped.visible)
        sure = []
        for gone in (0, 1):
            other = drop(batch, generator, torch.tensor([gone]))
            stop = network.scores(other.tokens, other.visible)[1][0]
            sure.append(float(stop[COMPLETE] - stop[MISSING]))
        cost = float(joint_costs(logits, dropped))
        ideal = floor(graph.puzzle.answer)
        return {"cost": cost, "ideal": ideal, "above ideal": cost - ideal, "stop": float(sure[0] > sure[1])}

    return Study(
        f"{settings.graphs} fresh star graphs of each size, words of the path dropped as in training; nats.",
        graphs_of(settings),
        [Arm(settings.model, measure)],
        (
            Figure("cross-entropy", "cost", form=".3f"),
            Figure("ideal", "ideal", form=".3f"),
            Figure("above ideal", "above ideal", form=".3f"),
            Figure("surer when complete", "stop", form=".1%", share=True),
        ),
        [
            PublishedClaim("the cross-entropy is not below that of an ideal model", "above ideal", settings.model, 0.0),
            PublishedClaim("the stop head is surer of a whole path", "surer when complete", settings.model, 0.9),
        ],
        "model",
        loaded(settings.model),
    )


EXPERIMENT = Experiment(
    "insertion_language_models",
    "Insertion language models of star graphs",
    "Patel et al., Insertion Language Models, 2025, arXiv 2505.05755",
    (
        "decodery.insertion",
        "decodery.models.insertions",
        "decodery.training.insertions",
        "decodery.evaluation.planning",
    ),
    Settings(),
    {"stars": stars, "holes": holes, "held_out": held_out},
)
