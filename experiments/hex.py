"""HEX against what it has to beat: the same number of forwards spent on one block length, or on random orders.

All schedules are runs of one request with all block lengths and as many seeds of each as the whole ensemble has runs. Runs are
addressed by block length and seed, so a vote over some of them is what `hex` with these lengths and seeds gives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decodery.diffusion.hex import HiddenExperts
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.evaluation.parallelbench.tasks import Sample, make_samples, score
from decodery.search.votes import Key, count, decided
from experiments.canvases import ACCURACY, FORWARDS, loaded

TASKS = ("sort", "continue_pattern", "arithmetic", "sudoku")
KINDS = {"arithmetic": "math"}
"""How a task's answer is read; that of all others is the whole text."""
Runs = dict[Key, dict[str, Any]]
"""What `hex` tells of its runs."""


@dataclass(frozen=True)
class Settings:
    tasks: tuple[str, ...] = TASKS
    samples: int = 10
    canvas: int = 32
    steps: int = 0
    seeds: int = 3
    temperature: float = 0.9
    at_once: int = 25
    early_stop: str = "never"
    seed: int = 0


@dataclass(frozen=True)
class Place:
    """A sample and its number within its task."""

    sample: Sample
    number: int


def saved(runs: Runs, keys: Sequence[Key], at_once: int) -> dict[str, float]:
    """Forwards of all runs, and of those that were needed until the winner was decided."""
    spent = 0
    done: dict[Key, str | None] = {}
    for start in range(0, len(keys), at_once):
        if decided(done, keys[start:]):
            break
        for key in keys[start : start + at_once]:
            done[key] = runs[key]["answer"]
            spent += runs[key]["forwards"]
    return {"until decided": float(spent)}


def agreement(runs: Runs, keys: Sequence[Key]) -> dict[str, float]:
    """Pairs of runs that both answer, and those that agree: of one block length, and of two."""
    told = dict.fromkeys(("pairs within", "same within", "pairs across", "same across"), 0.0)
    for one, two in itertools.combinations(keys, 2):
        answers = runs[one]["answer"], runs[two]["answer"]
        if None not in answers:
            kind = "within" if one[0] == two[0] else "across"
            told[f"pairs {kind}"] += 1
            told[f"same {kind}"] += answers[0] == answers[1]
    return told


class Ensemble:
    """All runs of a place, decoded once."""

    def __init__(self, settings: Settings):
        self.lm, self.settings = loaded("diffusion-lists"), settings
        self.shape = HiddenExperts(steps=settings.steps or None)
        self.canvas = settings.canvas
        self.blocks = tuple(self.shape.lengths(self.canvas))
        self.total = settings.seeds * len(self.blocks)
        self.runs = once_per_item(self._runs)
        self.orders = once_per_item(self._orders)

    def _asked(self, place: Place, more: str) -> Runs:
        given = self.settings
        shared = (
            f"gen_length={self.canvas}, answer={KINDS.get(place.sample.task, 'text')}, temperature={given.temperature}"
        )
        shared += f", steps={self.shape.planned(self.canvas)}, at_once={given.at_once}, early_stop={given.early_stop}"
        spec = f"hex({shared}, {more}, seeds={self.total})"
        reply = self.lm.generate(place.sample.prompt, spec, seed=given.seed + place.number)
        return {(run["block"], run["seed"]): run for run in reply.stats.details["runs"]}

    def _runs(self, place: Place) -> Runs:
        lengths = "x".join(str(block) for block in (*self.blocks, self.canvas))
        return self._asked(place, f"block_lengths={lengths}")

    def _orders(self, place: Place) -> Runs:
        return self._asked(place, f"block_lengths={self.canvas}, order=random")

    def greedy(self, place: Place) -> Mapping[str, float]:
        """One greedy run."""
        spec = (
            f"masked-diffusion(gen_length={self.canvas}, block_length={max(self.blocks)}, "
            f"steps={self.shape.planned(self.canvas)}, early_stop={self.settings.early_stop})"
        )
        reply = self.lm.generate(place.sample.prompt, spec)
        return _told(place, score(place.sample, reply.text), reply.stats.forwards)

    def vote(
        self, keys: Iterable[Key], choice: str = "vote", orders: bool = False
    ) -> Callable[[Place], Mapping[str, float]]:
        """Measures the winner of some runs."""
        chosen = list(keys)

        def measure(place: Place) -> Mapping[str, float]:
            runs = (self.orders if orders else self.runs)(place)
            some = {key: runs[key] for key in chosen}
            winner = count({key: run["answer"] for key, run in some.items()}).run
            if choice == "likelihood":
                winner = max(sorted(some), key=lambda key: some[key]["likelihood"])
            told = _told(place, score(place.sample, some[winner]["text"]), sum(r["forwards"] for r in some.values()))
            told |= {
                "runs": float(len(some)),
                "single right": float(sum(score(place.sample, run["text"]) for run in some.values())),
                "collapsed": float(sum(run["collapsed"] for run in some.values())),
            }
            return told | agreement(runs, chosen) | saved(runs, chosen, self.shape.at_once)

        return measure


def _told(place: Place, right: bool, forwards: int) -> dict[str, float]:
    return {"right": float(right), f"right, {place.sample.task}": float(right), "forwards": float(forwards)}


def schedules(settings: Settings) -> Study:
    all_runs = Ensemble(settings)
    blocks, canvas, total = all_runs.blocks, all_runs.canvas, all_runs.total
    ensemble = [(block, seed) for block in blocks for seed in range(settings.seeds)]
    singles = [f"blocks of {block} x {total}" for block in blocks]
    hexed = f"HEX, {len(blocks)} x {settings.seeds}"
    arms = [
        Arm("one greedy run", all_runs.greedy),
        *(
            Arm(name, all_runs.vote([(block, seed) for seed in range(total)]))
            for name, block in zip(singles, blocks, strict=True)
        ),
        Arm(f"no blocks x {total}", all_runs.vote([(canvas, seed) for seed in range(total)])),
        Arm(hexed, all_runs.vote(ensemble)),
        Arm("HEX, one run of each length", all_runs.vote([(block, 0) for block in blocks])),
        Arm("HEX, likeliest run", all_runs.vote(ensemble, "likelihood")),
        Arm(f"random order x {total}", all_runs.vote([(canvas, seed) for seed in range(total)], orders=True)),
    ]
    figures = (
        ACCURACY,
        *(Figure(task, f"right, {task}", form=".1%", share=True) for task in settings.tasks),
        FORWARDS,
        Figure("accuracy of a run", "single right", per="runs", form=".1%"),
        Figure("runs that collapse", "collapsed", per="runs", form=".1%"),
        Figure("pairs that agree, one block length", "same within", per="pairs within", form=".1%"),
        Figure("of two", "same across", per="pairs across", form=".1%"),
        Figure("forwards until decided", "until decided", form=".1f"),
    )
    claims = [
        PublishedClaim("HEX beats as many runs of one block length", "accuracy", hexed, single) for single in singles
    ]
    claims += [
        PublishedClaim("HEX beats one greedy run", "accuracy", hexed, "one greedy run"),
        PublishedClaim("HEX beats random orders", "accuracy", hexed, f"random order x {total}"),
    ]
    return Study(
        f"Canvas {canvas}, temperature {settings.temperature}; all schedules but the first spend as many runs.",
        [
            Place(s, n)
            for task in settings.tasks
            for n, s in enumerate(make_samples(task, settings.samples, seed=settings.seed))
        ],
        arms,
        figures,
        claims,
        "schedule",
        all_runs.lm,
    )


EXPERIMENT = Experiment(
    "hex",
    "HEX at equal numbers of forwards",
    "Test-time scaling in diffusion LLMs via hidden semi-autoregressive experts, 2025, arXiv 2510.05040",
    ("decodery.diffusion.hex", "decodery.search.votes", "decodery.search.answers", "decodery.diffusion.loop"),
    Settings(),
    {"schedules": schedules},
)
