"""AriEL: whether texts come back from their points, what random points decode to, and what lies between two texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from decodery.errors import Refused
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.language_model import LanguageModel
from decodery.replies import Reply
from experiments.texts import Asked, loaded, questions_of

PROMPT = "Here is a question:\n"
"""Before every text, so that it begins as one."""
SHORT = 40
"""Most tokens of a short text."""


@dataclass(frozen=True)
class Settings(Asked):
    """texts, long_texts: that go there and back. paths: pairs of texts; steps: points on the way of each. points: decoded to
    texts by each arm, `batch` at a time."""

    texts: int = 60
    long_texts: int = 6
    length: int = 200
    paths: int = 6
    steps: int = 32
    points: int = 128
    batch: int = 16
    room: int = 32


def sentences(lm: LanguageModel, count: int) -> list[str]:
    """The first sentences of questions: real ones of at most 40 tokens."""
    found = []
    for question in questions_of(Asked(per_category=1000)):
        text = re.split(r"(?<=[.?!])\s", question.turns[0].strip())[0]
        if 3 < len(lm.encode(text)) < SHORT and text not in found:
            found.append(text)
    return found[:count]


@cache
def passages(lm: LanguageModel, count: int, length: int) -> list[str]:
    """Long texts, which the model itself has written."""
    return [
        lm.generate(PROMPT, "autoregressive", temperature=0.8, seed=seed, max_new_tokens=length, ignore_eos=True).text
        for seed in range(count)
    ]


def there_and_back(lm: LanguageModel, text: str, parameters: str) -> dict[str, float]:
    """Whether a text comes back from its point, and if not where it first goes wrong; what that costs."""
    ids = lm.encode(text)
    spec = f"ariel(text={text!r}{', ' if parameters else ''}{parameters})"
    try:
        reply: Reply = lm.generate(PROMPT, spec, temperature=1.0, max_new_tokens=len(ids) + 1)
    except Refused:  # doubles are exhausted
        return {"back": 0.0, "carried": 0.0, "tokens": float(len(ids))}
    pairs = zip(ids, reply.token_ids, strict=False)
    wrong = next((place for place, (one, other) in enumerate(pairs) if one != other), len(ids))
    [told] = reply.stats.details["ariel"]["encoded"]
    return {
        "back": float(wrong == len(ids)),
        "carried": 1.0,
        "right tokens": float(wrong),
        "read tokens": float(len(ids)),
        "tokens": float(len(ids)),
        "bits": -told["log_volume"] / float(np.log(2)),
        "encoding": float(told["forwards"]),
    }


ROUND_TRIPS = {
    "exact, d=16": "",
    "exact, d=1": "dimensions=1",
    "doubles, d=16": "precision=float",
    "doubles, d=1": "precision=float, dimensions=1",
    "one pass, d=16": "reading=pass",
    "one pass, d=1": "reading=pass, dimensions=1",
}


def round_trips(settings: Settings, long: bool = False, rounded: bool = False, model: str = "") -> Study:
    """rounded: by transformers' own modules in float32, whose rows depend on how many are computed together."""
    name = model or settings.model
    lm = loaded(name, fast="off", dtype="float32") if rounded else loaded(name)
    if long:
        items: Sequence[str] = passages(lm, settings.long_texts, settings.length)
        names = ["exact, d=16", "exact, d=1", "doubles, d=16", "one pass, d=1"]
    else:
        items, names = sentences(lm, settings.texts), list(ROUND_TRIPS)

    def arm(name: str) -> Arm:
        return Arm(name, lambda text: there_and_back(lm, text, ROUND_TRIPS[name]))

    figures = [
        Figure("back", "back", form=".0%", share=True),
        Figure("carried", "carried", form=".0%", share=True),
        Figure("right tokens", "right tokens", per="read tokens", form=".0%"),
        Figure("tokens", "tokens", form=".0f"),
        Figure("bits", "bits", form=".0f"),
        Figure("forwards to encode", "encoding", form=".0f"),
    ]
    claims = [PublishedClaim("every text comes back from its point", "back", "exact, d=16", every=True)]
    if not long:
        claims.append(
            PublishedClaim("in doubles with 16 dimensions, too", "back", "doubles, d=16", every=True),
        )
    if rounded:
        claims.append(
            PublishedClaim("from one pass they do not", "back", "one pass, d=1", "exact, d=1", above=False),
        )
    about = (
        f"{len(items)} {'passages' if long else 'sentences'}. carried: no side of the box became too narrow for doubles; one "
        "pass: probabilities of one forward over the text, while points are decoded token by token. Rows that are the same "
        "bits whatever their company come back from either."
    )
    return Study(about, items, [arm(name) for name in names], figures, claims, arms_are="coder", lm=lm)


def generation(settings: Settings, model: str = "") -> Study:
    """Random points, low-discrepancy points and plain samples: the same law, as many different texts."""
    lm = loaded(model or settings.model)
    shared: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": settings.room, "n": settings.batch, "logprobs": 0}

    def arm(name: str, method: str, chance: str) -> Arm:
        def measure(seed: int) -> Mapping[str, float]:
            replies = lm.generate(PROMPT, method, seed=settings.seed + seed, chance=chance, **shared)
            return written(replies)

        return Arm(name, measure)

    arms = [
        arm("random points", "ariel", "addressed"),
        arm("random points, d=2", "ariel(dimensions=2)", "addressed"),
        arm("low-discrepancy points", "autoregressive", "qmcpy(dimensions=16)"),
        arm("plain samples", "autoregressive", "addressed"),
    ]
    claims = [
        PublishedClaim("random points decode to different texts", "different", "random points", 0.9),
        PublishedClaim(
            "which end by themselves no less often than samples", "difference of ends", "random points", -0.1
        ),
    ]
    figures = [
        Figure("different", "different", per="texts", form=".0%"),
        Figure("end", "ends", per="texts", form=".0%"),
        Figure("log p/token", "log probability", per="tokens"),
        Figure("tokens", "tokens", per="texts", form=".1f"),
        Figure(
            "difference of ends",
            derive=lambda look_up, arm: look_up(arm, "end") - look_up("plain samples", "end"),
            form=".2f",
        ),
    ]
    items = range(settings.points // settings.batch)
    about = (
        f"{settings.points} texts of at most {settings.room} tokens, {settings.batch} at a time, at a temperature of 1."
    )
    return Study(about, items, arms, figures, claims, arms_are="where texts come from", lm=lm)


def written(replies: Sequence[Reply]) -> dict[str, float]:
    """What several texts are like."""
    return {
        "texts": float(len(replies)),
        "different": float(len({tuple(reply.token_ids) for reply in replies})),
        "ends": float(sum(reply.finish_reason == "stop" for reply in replies)),
        "tokens": float(sum(len(reply.token_ids) for reply in replies)),
        "log probability": sum(entry.raw for reply in replies for entry in reply.logprobs or ()),
    }


def paths(settings: Settings, model: str = "") -> Study:
    lm = loaded(model or settings.model)
    texts = sentences(lm, 2 * settings.paths)
    items = list(zip(texts[::2], texts[1::2], strict=True))
    shared: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": SHORT, "n": settings.steps, "logprobs": 0}

    def arm(name: str, dimensions: int | None) -> Arm:
        def measure(ends: tuple[str, str]) -> Mapping[str, float]:
            if dimensions is None:
                return written(lm.generate(PROMPT, "autoregressive", seed=settings.seed + items.index(ends), **shared))
            spec = f"ariel(dimensions={dimensions}, text={ends[0]!r}, towards={ends[1]!r})"
            replies = lm.generate(PROMPT, spec, **shared)
            arrive = float(replies[0].text == ends[0] and replies[-1].text == ends[1])
            return written(replies) | {"arrive": arrive}

        return Arm(name, measure)

    figures = [
        Figure("arrive", "arrive", form=".0%", share=True),
        Figure("different", "different", form=".1f"),
        Figure("end", "ends", per="texts", form=".0%"),
        Figure("log p/token", "log probability", per="tokens"),
    ]
    claims = [
        PublishedClaim("a path begins and ends with its texts", "arrive", "d=16", every=True),
        PublishedClaim("there are more than the two texts on it", "different", "d=16", 2.0),
        PublishedClaim("texts on the way are as likely as samples", "log p/token", "d=16", "samples"),
    ]
    arms = [*(arm(f"d={count}", count) for count in (1, 2, 16)), arm("samples", None)]
    about = f"{settings.steps} points on the way between those of two sentences, and as many samples; {settings.paths} pairs."
    return Study(about, items, arms, figures, claims, arms_are="cube", lm=lm)


EXPERIMENT = Experiment(
    slug="ariel",
    title="AriEL: texts as volumes",
    source="arXiv 2003.13600",
    measures=("decodery.search.ariel", "decodery.sampling.volumes"),
    settings=Settings(),
    studies={
        "round_trips": round_trips,
        "round_trips_rounded": partial(round_trips, rounded=True),
        "long_texts": partial(round_trips, long=True),
        "generation": generation,
        "paths": paths,
        "round_trips_gemma": partial(round_trips, model="gemma3-270m"),
        "generation_gemma": partial(generation, model="gemma3-270m"),
    },
)
