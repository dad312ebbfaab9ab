"""SpecDec++: how much its head saves against fixed lengths and confidence, and whether what the head tells is true."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.intervals import Array
from decodery.evaluation.questions import Question
from decodery.speculative.specdec_pp.acceptance import TrainedHead, corrected, shipped
from decodery.training.answers import OwnAnswer
from decodery.training.sibling import agreement as agreement_of
from experiments.texts import SPEED, TOKENS_PER_ROUND, Asked, decoding, loaded, prompt_of, questions_of

BINS = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0))


@dataclass(frozen=True)
class Settings(Asked):
    """draft: the draft model. thresholds, confidences, longest: the policies; fixed lengths go from 1 to `longest`."""

    draft: str = "smollm2-sibling"
    thresholds: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    confidences: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    longest: int = 8


def _fixed(settings: Settings) -> list[str]:
    return [f"draft-model(draft={settings.draft}, length={k})" for k in range(1, settings.longest + 1)]


def _by_head(settings: Settings, threshold: float) -> str:
    bounds = f"shortest=1, longest={settings.longest}"
    return f"specdec-pp(draft={settings.draft}, rule=head, threshold={threshold}, {bounds})"


def _by_confidence(settings: Settings, confidence: float) -> str:
    bounds = f"shortest=1, longest={settings.longest}"
    return f"specdec-pp(draft={settings.draft}, rule=confidence, confidence={confidence}, {bounds})"


def _counting_discarded(arm: Arm) -> Arm:
    def measure(item: Any) -> Mapping[str, float]:
        told = arm.measure(item)
        return {**told, "discarded": told["drafted"] - told["accepted"]}

    return Arm(arm.name, measure)


def _margin(heads: list[str], fixed: list[str]) -> Callable[[Callable[[str, str], Array], str], Array]:
    """Of a fixed length: by how much the best threshold is better in the worse of both rates; 0 or more where some threshold
    discards and verifies no more."""

    def derive(drawn: Callable[[str, str], Array], arm: str) -> Array:
        if arm not in fixed:
            return np.full(1, np.nan)
        rates = ("discards", "verifications")
        gains = [np.minimum(*(drawn(arm, rate) - drawn(head, rate) for rate in rates)) for head in heads]
        best: Array = np.max(gains, axis=0)
        return best

    return derive


def policies(settings: Settings) -> Study:
    lm = loaded(settings.model)
    fixed, heads = _fixed(settings), [_by_head(settings, threshold) for threshold in settings.thresholds]
    specs = [*fixed, *heads, *(_by_confidence(settings, confidence) for confidence in settings.confidences)]
    figures = (
        Figure("discards", "discarded", per="tokens", form=".3f"),
        Figure("verifications", "rounds", per="tokens", form=".3f"),
        TOKENS_PER_ROUND,
        Figure("margin", derive=_margin(heads, fixed), form=".3f"),
    )
    claims = [PublishedClaim("some threshold is better on both axes", "margin", spec) for spec in fixed]
    return Study(
        f"First turns at temperature 1, at most {settings.tokens} tokens; discarded tokens and passes of the target for each "
        "token of the output. Margin: of a fixed length, by how much the best threshold is better in the worse of both rates.",
        questions_of(settings),
        [_counting_discarded(arm) for arm in decoding(lm, specs, settings, 1.0)],
        figures,
        claims,
        lm=lm,
    )


def agreement(settings: Settings) -> Study:
    lm = loaded(settings.model)
    small = lm.companion(settings.draft)

    def measure(question: Question) -> Mapping[str, float]:
        prompt = prompt_of(lm, question)
        reply = lm.generate(prompt, "autoregressive", max_new_tokens=settings.tokens)
        answer = OwnAnswer(prompt, list(reply.token_ids), 0.0)
        return {"same": agreement_of(lm, small, [answer])}

    return Study(
        f"The model's own greedy answers of at most {settings.tokens} tokens to decodery's questions, which no recipe has "
        "seen: the share of places at which both hold the same token likeliest, on the average of questions.",
        questions_of(settings),
        [Arm(settings.draft, measure)],
        (Figure("agreement", "same"),),
        [PublishedClaim("it agrees at 0.45 of the places", "agreement", settings.draft, 0.45)],
        arms_are="draft model",
        lm=lm,
    )


def greedy(settings: Settings) -> Study:
    lm = loaded(settings.model)
    lengths = [f"draft-model(draft={settings.draft}, length={length})" for length in ("2", "4", "auto")]
    specs = ["autoregressive", *lengths, f"specdec-pp(draft={settings.draft})"]
    claims = [PublishedClaim("faster than plain decoding", "speed", spec, 1.0) for spec in specs[1:]]
    return Study(
        f"First turns, greedily, at most {settings.tokens} tokens, one at a time.",
        questions_of(settings),
        decoding(lm, specs, settings),
        (TOKENS_PER_ROUND, SPEED, Figure("accepted", "accepted", per="drafted", form=".0%")),
        claims,
        lm=lm,
    )


@dataclass(frozen=True)
class Judged:
    """A drafted token whose predecessors were accepted: the corrected chance that the head told, and what became of it."""

    raw: float
    chance: float
    accepted: float


@cache
def _judged(settings: Settings) -> tuple[Judged, ...]:
    """All tokens of drafts as long as can be that the head was asked about."""
    lm = loaded(settings.model)
    head = _head(settings)
    spec = f"specdec-pp(draft={settings.draft}, rule=head, threshold=1, shortest=1, longest={settings.longest})"
    found = []
    for question in questions_of(settings):
        lm.forget()
        reply = lm.generate(
            prompt_of(lm, question), spec, temperature=1.0, seed=settings.seed, max_new_tokens=settings.tokens
        )
        for raw, accepted in reply.stats.details["judged"]:
            chance = float(corrected(torch.tensor(raw), head.rejection_weight))
            found.append(Judged(raw, chance, float(accepted)))
    return tuple(found)


def _head(settings: Settings) -> TrainedHead:
    lm = loaded(settings.model)
    folder = shipped(lm.network.fingerprint(), lm.companion(settings.draft).network.fingerprint(), 0)
    assert folder is not None, "no head is shipped for these models"
    return TrainedHead.read(folder)


def _auc(weights: Array, chances: Array, accepted: Array) -> Array:
    """The chance that an accepted token was told more than a rejected one, ties counting half: [draws + 1]."""
    order = np.argsort(chances, kind="stable")
    values, first = np.unique(chances[order], return_index=True)
    rises, falls = weights[:, order] * accepted[order], weights[:, order] * (1 - accepted[order])
    up, down = (np.add.reduceat(side, first, axis=1) for side in (rises, falls))
    below = np.cumsum(down, axis=1) - down
    with np.errstate(divide="ignore", invalid="ignore"):
        area: Array = (up * (below + down / 2)).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1))
    assert len(values) == up.shape[1]
    return area


def calibration(settings: Settings) -> Study:
    judged = _judged(settings)
    base = float(np.mean([one.accepted for one in judged]))

    def telling(chance: Callable[[Judged], float]) -> Callable[[Judged], Mapping[str, float]]:
        return lambda one: {
            "told": chance(one),
            "accepted": one.accepted,
            "squared": (chance(one) - one.accepted) ** 2,
        }

    head, constant = "the head, corrected", "the base rate"
    return Study(
        f"{len(judged)} drafted tokens whose predecessors were accepted, at temperature 1, on decodery's own questions, which "
        "no recipe has seen; drafts as long as can be. Intervals are over tokens.",
        judged,
        [
            Arm(head, telling(lambda one: one.chance)),
            Arm("the head, raw", telling(lambda one: one.raw)),
            Arm(constant, telling(lambda one: base)),
        ],
        (
            Figure("AUC", "told", per="accepted", statistic=_auc, form=".3f"),
            Figure("Brier", "squared", form=".3f"),
            Figure("told", "told", form=".3f"),
            Figure("accepted", "accepted", form=".3f"),
        ),
        (
            PublishedClaim("the head tells accepted from rejected tokens", "AUC", head, 0.5),
            PublishedClaim("it is better than the base rate", "Brier", head, constant, above=False),
        ),
        arms_are="what tells",
    )


def reliability(settings: Settings) -> Study:
    judged = _judged(settings)

    def of_bin(low: float, high: float) -> Callable[[Judged], Mapping[str, float]]:
        def measure(one: Judged) -> Mapping[str, float]:
            inside = low <= one.chance < high or one.chance == high == 1.0
            return {"told": one.chance, "accepted": one.accepted, "count": 1.0} if inside else {"count": 0.0}

        return measure

    return Study(
        f"The same {len(judged)} tokens, by the corrected chance that the head told.",
        judged,
        [Arm(f"{low:g} to {high:g}", of_bin(low, high)) for low, high in BINS],
        (
            Figure("share of tokens", "count", form=".0%", share=True),
            Figure("told", "told"),
            Figure("accepted", "accepted", form=".2f", share=True),
        ),
        arms_are="told",
    )


EXPERIMENT = Experiment(
    "specdec_pp",
    "Draft lengths by a trained head",
    "Huang et al., COLM 2025, arXiv 2405.19715",
    ("decodery.speculative.specdec_pp", "decodery.speculative.draft_model"),
    Settings(),
    {
        "agreement": agreement,
        "policies": policies,
        "greedy": greedy,
        "calibration": calibration,
        "reliability": reliability,
    },
)
