"""DiffAdapt: tokens and right answers of the probe's choice beside every fixed strategy, a random and the best one.

Short questions that rules make, of words and numbers that the probe's training did not have, are answered in each of the three
ways, several times; whoever chooses, chooses among these answers. "frontier" compares choices, "probe" what the probe says of a
question with what the answers show, beside simpler rules, and "entropy" shows uncertainty by the share of right answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decodery.errors import BadInput
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.intervals import Array
from decodery.evaluation.short_questions import ShortQuestion, short_questions
from decodery.routing.diffadapt.strategies import CARD, CLASSES, Router, choose, shipped
from decodery.training.diffadapt import HARD, classes_of, observed, prompt_ids
from experiments.texts import loaded


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2-135m"
    questions: int = 200
    samples: int = 4
    budget: int = 48
    batch: int = 64
    probe: str = "auto"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Item:
    """A question, its place, and by strategy the mean tokens and the share of right answers."""

    place: int
    question: ShortQuestion
    tokens: Mapping[str, float]
    right: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Answered:
    """items, and of each: the class that its normal answers show, the probe's, the share of right answers, the entropy; the
    card of the probe."""

    items: list[Item]
    classes: list[int]
    chosen: list[int]
    shares: list[float]
    entropies: list[float]
    card: Mapping[str, Any]


@cache
def answered(settings: Settings) -> Answered:
    lm = loaded(settings.model)
    folder = Path(settings.probe) if settings.probe != "auto" else shipped(lm.network.fingerprint())
    if folder is None:
        raise BadInput(f"no probe ships for {settings.model}; give one by --probe.")
    router, card = Router.read(folder), json.loads((folder / CARD).read_text())
    policy = router.policy
    questions = short_questions(settings.questions, settings.seed, held_out=True)
    asked = [prompt_ids(lm, policy, one.text) for one in questions]
    replies: dict[str, list[list[int]]] = {}
    for name in CLASSES:
        strategy = policy.of(name)
        suffix = lm.encode(strategy.suffix)
        prompts = [[*ids, *suffix] for ids in asked for _ in range(settings.samples)]
        replies[name] = []
        for start in range(0, len(prompts), settings.batch):
            some = prompts[start : start + settings.batch]
            found = lm.generate(
                some,
                method="autoregressive",
                temperature=strategy.temperature,
                seed=list(range(start, start + len(some))),
                max_new_tokens=strategy.budget(settings.budget),
                stop=[policy.stop],
            )
            replies[name] += [reply.token_ids for reply in found]
    items = []
    for place, question in enumerate(questions):
        own = {name: replies[name][place * settings.samples : (place + 1) * settings.samples] for name in CLASSES}
        items.append(
            Item(
                place,
                question,
                {name: float(np.mean([len(one) for one in own[name]])) for name in CLASSES},
                {
                    name: float(
                        np.mean(
                            [question.right(policy.of(name).suffix + lm.tokenizer.decode(one)) for one in own[name]]
                        )
                    )
                    for name in CLASSES
                },
            )
        )
    normal = [replies["normal"][i * settings.samples : (i + 1) * settings.samples] for i in range(len(questions))]
    rows, shares, entropies = observed(lm, questions, normal, policy)
    with torch.no_grad():
        laws = router.probe(rows).softmax(dim=-1)
    at = card["thresholds"]
    classes = classes_of(shares, entropies, at["gamma"], at["alpha"], at["beta"])
    chosen = [CLASSES.index(choose(law)) for law in laws]
    return Answered(items, classes.tolist(), chosen, shares.tolist(), entropies.tolist(), card)


def about(settings: Settings) -> str:
    return (
        f"{settings.questions} questions, {settings.samples} answers to each in each way, of at most {settings.budget} tokens; "
        "seed of the questions: their held-out half."
    )


def frontier(settings: Settings) -> Study:
    known = answered(settings)
    shares = np.bincount(known.chosen, minlength=3) / len(known.chosen)

    def fixed(pick: Callable[[Item], Mapping[str, float]]) -> Callable[[Item], Mapping[str, float]]:
        """Tokens and right answers where strategies are taken with these probabilities."""

        def measure(item: Item) -> Mapping[str, float]:
            weights = pick(item)
            return {
                "tokens": sum(weight * item.tokens[name] for name, weight in weights.items()),
                "right": sum(weight * item.right[name] for name, weight in weights.items()),
            }

        return measure

    def best(item: Item) -> Mapping[str, float]:
        return {min(CLASSES, key=lambda name: (-item.right[name], item.tokens[name])): 1.0}

    arms = [
        Arm("the probe's choice", fixed(lambda item: {CLASSES[known.chosen[item.place]]: 1.0})),
        Arm("at random, as often", fixed(lambda item: dict(zip(CLASSES, shares.tolist(), strict=True)))),
        Arm("best in hindsight", fixed(best)),
        *(Arm(f"always {name}", fixed(lambda item, name=name: {name: 1.0})) for name in CLASSES),  # type: ignore[misc]
    ]
    return Study(
        about(settings) + " At random: expected, with the probe's shares of strategies "
        f"({', '.join(f'{name} {share:.0%}' for name, share in zip(CLASSES, shares, strict=True))}). Best in hindsight: by "
        "right answers, then by tokens, on the same answers.",
        known.items,
        arms,
        (Figure("right", "right", form=".1%"), Figure("tokens", "tokens", form=".1f")),
        (
            PublishedClaim("fewer tokens than the normal way", "tokens", "the probe's choice", "always normal", False),
            PublishedClaim("at comparable or better accuracy", "right", "the probe's choice", "always normal"),
            PublishedClaim(
                "more right answers than choosing at random", "right", "the probe's choice", "at random, as often"
            ),
            PublishedClaim("the best choice is above every fixed one", "right", "best in hindsight", "always normal"),
        ),
        "strategy",
        loaded(settings.model),
    )


def _balanced(weights: Array, wanted: Array, chosen: Array) -> Array:
    """Balanced accuracy of each resample [draws + 1]."""
    parts = []
    for one in range(3):
        own = wanted == one
        if own.any():
            with np.errstate(invalid="ignore"):
                parts.append(weights[:, own] @ (chosen[own] == one) / weights[:, own].sum(axis=1))
    found: Array = np.nanmean(parts, axis=0)
    return found


def probe(settings: Settings) -> Study:
    known = answered(settings)
    lm, card = loaded(settings.model), known.card
    majority = int(np.argmax([card["metrics"]["questions"][name] for name in CLASSES]))
    lengths = np.array(card["lengths"])

    def arm(name: str, say: Callable[[Item], int]) -> Arm:
        def measure(item: Item) -> Mapping[str, float]:
            wanted, chosen = known.classes[item.place], say(item)
            told = {"wanted": float(wanted), "chosen": float(chosen), "same": float(wanted == chosen)}
            return told | ({"hard as easy": float(chosen == 0)} if wanted == HARD else {})

        return Arm(name, measure)

    return Study(
        about(settings) + " What a question is, is read off its normal answers by the thresholds of the training: "
        f"{', '.join(f'{known.classes.count(place)} {name}' for place, name in enumerate(CLASSES))}. Length: the class whose "
        "training questions were as long on average; task: the class that most training questions of the same rule have. "
        "Chance: 0.33.",
        known.items,
        [
            arm("probe", lambda item: known.chosen[item.place]),
            arm("most frequent class", lambda item: majority),
            arm("length", lambda item: int(np.abs(lengths - len(lm.encode(item.question.text))).argmin())),
            arm("task", lambda item: int(np.argmax(card["kinds"].get(item.question.kind, [0, 1, 0])))),
        ],
        (
            Figure("balanced accuracy", "wanted", per="chosen", statistic=_balanced),
            Figure("accuracy", "same", form=".1%"),
            Figure("hard taken for easy", "hard as easy", form=".1%"),
        ),
        (
            PublishedClaim("the probe tells more than chance", "balanced accuracy", "probe", 1 / 3),
            PublishedClaim("more than the length of the question", "balanced accuracy", "probe", "length"),
            PublishedClaim("more than the task alone", "balanced accuracy", "probe", "task"),
        ),
        "rule",
        lm,
    )


def entropy(settings: Settings) -> Study:
    known = answered(settings)

    def arm(name: str, inside: Callable[[float], bool]) -> Arm:
        def measure(item: Item) -> Mapping[str, float]:
            there = inside(known.shares[item.place])
            return {"inside": float(there)} | ({"entropy": known.entropies[item.place]} if there else {})

        return Arm(name, measure)

    return Study(
        about(settings)
        + " Mean entropy along the normal answers, at temperature 1, by the share of them that is right.",
        known.items,
        [
            arm("none", lambda share: share == 0),
            arm("some", lambda share: 0 < share < 1),
            arm("all", lambda share: share == 1),
        ],
        (Figure("questions", "inside", form=".0%"), Figure("entropy", "entropy", unit=" nats")),
        (
            PublishedClaim("entropy is higher on hard questions than on medium ones", "entropy", "none", "some"),
            PublishedClaim("entropy is higher on easy questions than on medium ones", "entropy", "all", "some"),
        ),
        "right answers",
        loaded(settings.model),
    )


EXPERIMENT = Experiment(
    "diffadapt",
    "DiffAdapt: choices of strategies, the probe, and entropy by difficulty",
    "Liu et al., DiffAdapt, ICLR 2026, arXiv 2510.19669",
    ("decodery.routing.diffadapt", "decodery.training.diffadapt", "decodery.evaluation.short_questions"),
    Settings(),
    {"frontier": frontier, "probe": probe, "entropy": entropy},
)
