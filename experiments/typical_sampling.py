"""Typical sampling against nucleus sampling: how far surprises are from entropies, how much is repeated, and which tokens
either keeps where both keep as many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.recorded import Recorded
from decodery.models.forward import Forward
from decodery.sampling import Law, LawSettings
from experiments.open_ended import (
    COHERENCE,
    DIVERSITY,
    FORWARDS,
    REPEATED,
    Writing,
    comparing,
    nearness,
    prompts_of,
    writing,
)
from experiments.texts import loaded, recorded

NUCLEUS = 0.95


@dataclass(frozen=True)
class Settings(Writing):
    masses: tuple[float, ...] = (0.2, 0.5, 0.95)
    nuclei: tuple[float, ...] = (0.5, 0.8, NUCLEUS)
    positions: int = 32


def texts(settings: Settings) -> Study:
    lm, prompts = prompts_of(settings)
    hot: dict[str, Any] = {"temperature": 1.0}
    arms = [
        *(writing(lm, settings, f"nucleus {p:g}", top_p=p, **hot) for p in settings.nuclei),
        *(writing(lm, settings, f"typical {p:g}", typical_p=p, **hot) for p in settings.masses),
        writing(lm, settings, "the whole law", **hot),
        writing(lm, settings, "greedy"),
    ]
    most = f"typical {max(settings.masses):g}"
    claims = [
        PublishedClaim("surprises are nearer to the entropy than in nucleus sampling", "deviation", most,
                       f"nucleus {NUCLEUS}", above=False),
        PublishedClaim("less is repeated than in nucleus sampling", "rep-4", most, f"nucleus {NUCLEUS}", above=False),
    ]  # fmt: skip
    figures = [
        Figure("deviation", "deviation"),
        Figure("entropy", "entropy"),
        Figure("typical", "typical", form=".0%"),
        REPEATED,
        DIVERSITY,
        COHERENCE,
        FORWARDS,
    ]
    about = (
        f"Answers of {settings.tokens} tokens to {len(prompts)} questions at a temperature of 1. deviation: mean distance, in "
        "nats, of a token's surprise from the entropy; typical: share of tokens nearer than half a nat. Compare arms of equal "
        "entropy, and repetition at equal coherence."
    )
    return Study(about, prompts, arms, figures, claims, arms_are="law", lm=lm)


def people(settings: Settings) -> Study:
    hot: dict[str, Any] = {"temperature": 1.0}
    arms = [
        comparing(settings, "greedy"),
        comparing(settings, f"nucleus {NUCLEUS}", top_p=NUCLEUS, **hot),
        *(comparing(settings, f"typical {p:g}", typical_p=p, **hot) for p in settings.masses),
        comparing(settings, "the whole law", **hot),
    ]
    most = f"typical {max(settings.masses):g}"
    claims = [
        PublishedClaim("its texts are nearer to people's than nucleus sampling's", "MAUVE", most, f"nucleus {NUCLEUS}"),
        PublishedClaim("and than greedy decoding's", "MAUVE", most, "greedy"),
    ]
    return nearness(settings, arms, claims)


def kept(row: Tensor, **settings: Any) -> Tensor:
    """Which tokens a law keeps, [vocabulary] bool."""
    return Law(LawSettings(temperature=1.0, **settings), [0]).scores(row) > -torch.inf


def matched(rows: Tensor) -> float:
    """The mass with which typical sampling keeps as many tokens, on average over rows, as nucleus sampling does."""
    wanted = sum(int(kept(row, top_p=NUCLEUS).sum()) for row in rows)
    low, high = 0.01, 0.9999
    for _ in range(12):
        middle = (low + high) / 2
        found = sum(int(kept(row, typical_p=middle).sum()) for row in rows)
        low, high = (middle, high) if found < wanted else (low, middle)
    return (low + high) / 2


def kept_sets(settings: Settings) -> Study:
    lm, items = loaded(settings.model), recorded(settings)

    @cache
    def rows_of(place: int) -> Tensor:
        text = items[place]
        [scores] = lm.network.run(
            [Forward(lm.network.new_sequence(), list(text.tokens)[: text.start + settings.positions])]
        )
        return scores.logits[text.start - 1 :]

    mass = matched(torch.cat([rows_of(place) for place in range(min(4, len(items)))]))

    def arm(name: str, **law: float) -> Arm:
        def measure(text: Recorded) -> Mapping[str, float]:
            told = dict.fromkeys(("positions", "size", "differs", "without the likeliest"), 0.0)
            for row in rows_of(items.index(text)):
                own, nucleus = kept(row, **law), kept(row, top_p=NUCLEUS)
                told["positions"] += 1
                told["size"] += int(own.sum())
                told["differs"] += bool((own != nucleus).any())
                told["without the likeliest"] += not bool(own[int(row.argmax())])
            return told

        return Arm(name, measure)

    arms = [arm(f"nucleus {NUCLEUS}", top_p=NUCLEUS), arm("typical, as many", typical_p=mass)]
    figures = [
        Figure("kept", "size", per="positions", form=".1f"),
        Figure("other set", "differs", per="positions", form=".0%"),
        Figure("without the likeliest", "without the likeliest", per="positions", form=".0%"),
    ]
    claims = [PublishedClaim("the two keep other tokens", "other set", "typical, as many", 0.1)]
    about = "Positions of greedy answers; typical sampling with the mass at which both keep as many tokens on average."
    return Study(about, items, arms, figures, claims, arms_are="law", lm=lm)


EXPERIMENT = Experiment(
    slug="typical_sampling",
    title="Typical sampling",
    source="arXiv 2202.00666",
    measures=(
        "decodery.sampling.steps.typical_p",
        "decodery.evaluation.typicality",
        "decodery.evaluation.text_quality",
        "decodery.evaluation.mauve",
    ),
    settings=Settings(),
    studies={"texts": texts, "kept_sets": kept_sets, "people": people},
)
