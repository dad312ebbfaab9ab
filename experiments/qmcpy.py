"""Low-discrepancy samples against independent ones: how much estimates over the n texts of a request vary, how many of them
differ, what a vote over them is worth, and what error bars say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.intervals import Array
from decodery.evaluation.questions import Question
from decodery.replies import Reply
from decodery.search import answers
from experiments.cautious_next_token import Problem, problems
from experiments.texts import Asked, loaded, prompt_of, questions_of

INDEPENDENT = "independent"
ARMS = {
    INDEPENDENT: "addressed",
    "lattice": "qmcpy",
    "lattice, shuffled": "qmcpy(shuffle=True)",
    "net": "qmcpy(points=net)",
    "net, nested": "qmcpy(points=net, randomize=nus)",
    "16 coordinates": "qmcpy(dimensions=16)",
}
"""Name -> where draws come from."""
FOURTH = 3


@dataclass(frozen=True)
class Settings(Asked):
    """sets: randomisations of each arm on each prompt. samples: texts of each. problems: sums that are voted on."""

    per_category: int = 1
    tokens: int = 8
    samples: int = 8
    sets: int = 24
    temperature: float = 0.7
    problems: int = 60
    votes: int = 8
    room: int = 40


def quantities(replies: Sequence[Reply], first: int, fourth: int) -> list[float]:
    """What is averaged over the texts of one request: shares that begin with a token and that have one as their fourth, the
    mean log probability, the share of different tokens."""
    ids = [reply.token_ids for reply in replies]
    types = [len(set(text)) / len(text) for text in ids]
    chances = [sum(entry.raw for entry in reply.logprobs or ()) for reply in replies]
    return [
        float(np.mean([text[0] == first for text in ids])),
        float(np.mean([text[FOURTH : FOURTH + 1] == [fourth] for text in ids])),
        float(np.mean(chances)),
        float(np.mean(types)),
    ]


def spread(settings: Settings, model: str = "") -> Study:
    lm = loaded(model or settings.model)
    shared: dict[str, Any] = {
        "temperature": settings.temperature,
        "max_new_tokens": settings.tokens,
        "n": settings.samples,
        "logprobs": 0,
        "ignore_eos": True,
    }

    def usual(prompt: list[int]) -> tuple[int, int]:
        """The first and the fourth token of the greedy answer: what texts may share."""
        text = lm.generate(prompt, "autoregressive", max_new_tokens=FOURTH + 1, ignore_eos=True).token_ids
        return text[0], text[FOURTH]

    def arm(name: str, chance: str) -> Arm:
        def measure(question: Question) -> Mapping[str, float]:
            prompt = prompt_of(lm, question)
            first, fourth = usual(prompt)
            found, different, seconds, tokens = [], 0.0, 0.0, 0
            for number in range(settings.sets):
                replies = lm.generate(prompt, "autoregressive", chance=chance, seed=settings.seed + number, **shared)
                found.append(quantities(replies, first, fourth))
                different += len({tuple(reply.token_ids) for reply in replies})
                seconds += max(reply.stats.seconds for reply in replies)
                tokens += sum(len(reply.token_ids) for reply in replies)
            named = zip(("first", "fourth", "log probability", "types"), np.var(found, axis=0, ddof=1), strict=True)
            return {name: float(value) for name, value in named} | {
                "different": different,
                "texts": float(settings.sets * settings.samples),
                "seconds": 1e3 * seconds,
                "tokens": float(tokens),
            }

        return Arm(name, measure)

    def reduction(name: str, figure: str) -> Figure:
        """How many times smaller the variance is than that of independent samples, of totals over prompts."""

        def derive(look_up: Any, arm: str) -> Array:
            with np.errstate(divide="ignore", invalid="ignore"):
                found: Array = look_up(INDEPENDENT, name) / look_up(arm, name)
            return found

        return Figure(figure, derive=derive, form=".1f", unit="x")

    variances = ("first", "fourth", "log probability", "types")
    figures = [
        *(Figure(f"var {name}", name, form=".2g") for name in variances),
        *(reduction(f"var {name}", f"{name}, less by") for name in variances),
        Figure("different", "different", per="texts", form=".0%"),
        Figure("ms/token", "seconds", per="tokens", form=".2f"),
    ]
    claims = [
        PublishedClaim("lattice: a first token's share varies less", "var first", "lattice", INDEPENDENT, above=False),
        PublishedClaim(
            "lattice: the mean log probability varies less", "var log probability", "lattice", INDEPENDENT, above=False
        ),
        PublishedClaim(
            "lattice: the share of a fourth token varies less", "var fourth", "lattice", INDEPENDENT, above=False
        ),
        PublishedClaim("net: a first token's share varies less", "var first", "net", INDEPENDENT, above=False),
        PublishedClaim("more of the texts of a request differ", "different", "lattice", INDEPENDENT),
    ]
    items = questions_of(settings)
    expected = math.sqrt(2 / (settings.sets - 1))
    about = (
        f"{settings.samples} texts of {settings.tokens} tokens to each of {len(items)} questions at a temperature of "
        f"{settings.temperature}, {settings.sets} times: variances of means over the texts of a request (each with a relative "
        f"error of {expected:.0%} for a question). first, fourth: the token of the greedy answer."
    )
    arms = [arm(name, chance) for name, chance in ARMS.items()]
    return Study(about, items, arms, figures, claims, arms_are="points", lm=lm)


def votes(settings: Settings, model: str = "") -> Study:
    lm = loaded(model or settings.model)
    items = problems(settings.problems, settings.seed)

    def arm(name: str, chance: str) -> Arm:
        def measure(problem: Problem) -> Mapping[str, float]:
            reply = lm.chat(
                problem.text,
                method=f"self-consistency(samples={settings.votes}, answer=math)",
                chance=chance,
                temperature=settings.temperature,
                seed=settings.seed + problem.number,
                max_new_tokens=settings.room,
            )
            tries = reply.stats.details["tries"]
            right = [answers.parse(one["text"], "math") == str(problem.answer) for one in tries]
            return {
                "right": float(answers.parse(reply.text, "math") == str(problem.answer)),
                "any": float(any(right)),
                "each": float(np.mean(right)),
                "different": float(len({one["text"] for one in tries})),
                "tries": float(len(tries)),
            }

        return Arm(name, measure)

    figures = [
        Figure("right", "right", form=".0%", share=True),
        Figure("any right", "any", form=".0%", share=True),
        Figure("each right", "each", form=".0%"),
        Figure("different", "different", per="tries", form=".0%"),
    ]
    claims = [
        PublishedClaim("the vote is right more often than over independent samples", "right", "lattice", INDEPENDENT),
        PublishedClaim("the tries differ more", "different", "lattice", INDEPENDENT),
    ]
    about = (
        f"{settings.problems} sums in words, the answer of most of {settings.votes} texts at a temperature of "
        f"{settings.temperature}. A vote is no mean: that it gains is no consequence of smaller variances."
    )
    arms = [arm(name, ARMS[name]) for name in (INDEPENDENT, "lattice", "net")]
    return Study(about, items, arms, figures, claims, arms_are="points", lm=lm)


def error_bars(settings: Settings, model: str = "") -> Study:
    """Intervals of the method qmcpy, and how many texts it takes to a tolerance, beside independent samples."""
    lm = loaded(model or settings.model)

    def arm(name: str, spec: str) -> Arm:
        def measure(question: Question) -> Mapping[str, float]:
            reply = lm.generate(
                prompt_of(lm, question),
                method=spec,
                temperature=settings.temperature,
                max_new_tokens=settings.tokens,
                ignore_eos=True,
                seed=settings.seed,
            )
            told = reply.stats.details["estimate"]
            within = np.std([one["log_probability"] for one in reply.stats.details["tries"]], ddof=1)
            found = {
                "texts": float(told["samples"]),
                "error": told["error"],
                "within": float(within) / math.sqrt(told["samples"]),
            }
            kernel = told.get("kernel_errors")
            root = math.sqrt(len(kernel)) if kernel else 1.0
            return found | ({"kernel": float(np.mean(kernel)) / root} if kernel else {})

        return Arm(name, measure)

    arms = [
        arm("lattice", "qmcpy(tolerance=0.4, samples=128, kernel=True)"),
        arm("net", "qmcpy(points=net, tolerance=0.4, samples=128, kernel=True)"),
        arm("halton", "qmcpy(points=halton, tolerance=0.4, samples=128)"),
    ]
    figures = [
        Figure("texts", "texts", form=".0f"),
        Figure("error", "error", form=".3f"),
        Figure("within", "within", form=".3f"),
        Figure("kernel", "kernel", form=".3f"),
    ]
    claims = [
        PublishedClaim("the error is smaller than what deviations within a request say", "within less error", "lattice")
    ]
    figures.append(
        Figure(
            "within less error",
            derive=lambda look_up, arm: look_up(arm, "within") - look_up(arm, "error"),
            form=".3f",
        )
    )
    about = (
        f"Mean log probability of {settings.tokens} tokens, until half the width of a 95 % interval is 0.4 nats, or 128 texts. "
        "error: from 8 randomised sets; within: from the deviation of the texts, as if they were independent; kernel: "
        "from each set alone, for the mean of all."
    )
    return Study(about, questions_of(settings), arms, figures, claims, arms_are="points", lm=lm)


EXPERIMENT = Experiment(
    slug="qmcpy",
    title="Low-discrepancy samples",
    source="Sorokin 2025 (QMCPy); arXiv 2210.15458; arXiv 2411.06251",
    measures=(
        "decodery.sampling.chance.qmcpy",
        "decodery.sampling.chance.arithmetic",
        "decodery.sampling.estimates",
        "decodery.search.qmcpy",
    ),
    settings=Settings(),
    studies={
        "spread": spread,
        "votes": votes,
        "error_bars": error_bars,
        "spread_gemma": partial(spread, model="gemma3-270m"),
        "votes_gemma": partial(votes, model="gemma3-270m"),
    },
)
