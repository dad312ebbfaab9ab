"""Weighted rejection: how far masking and weighted texts are from the exact law; how often a constraint is asked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from decodery.errors import ConstraintFailed
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.weights_check import DEAD_END, dead_end_model, masses, run_weights
from experiments.texts import loaded

SPECS = {
    "masking": "awrs(particles={n}, proper_weights=False)",
    "importance sampling": "awrs(particles={n}, ess_threshold=0)",
    "awrs": "awrs(particles={n})",
}
SUBJECTS = ("a person", "a book", "a town", "a recipe", "a weather report", "an invoice", "a film", "a bicycle")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "number": {"type": "integer"}},
    "required": ["name", "number"],
    "additionalProperties": False,
}
FEW = 0.01
"""Of the vocabulary: what the card expects the mean number of questions to stay below."""


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2-135m"
    runs: int = 200
    particles: int = 32
    tokens: int = 60
    seed: int = 0


def language(settings: Settings) -> Study:
    lm, exact = dead_end_model(), masses()
    mass = math.fsum(exact.values())

    def arm(name: str, count: int) -> Arm:
        spec = SPECS[name].format(n=count)

        def measure(seed: int) -> Mapping[str, float]:
            try:
                law, estimate, questions = run_weights(lm, spec, seed)
            except ConstraintFailed:
                return {}
            return {
                "dead": law.get(DEAD_END, 0.0),
                "variation": 0.5 * sum(abs(law.get(text, 0.0) - own / mass) for text, own in exact.items()),
                "estimate": estimate,
                "questions": questions / (6 * count),
            }

        return Arm(f"{name}, {count}", measure)

    arms = [arm(name, settings.particles) for name in SPECS] + [arm("awrs", 8), arm("awrs", 1)]
    least = settings.particles
    return Study(
        "Texts of five letters, of which those that begin with a have one valid end that is hardly ever written; an item is a "
        "run, weighed by its particles. Exactly, the dead end has a share of 0.0000001, and the mass is 0.550.",
        [settings.seed + number for number in range(settings.runs)],
        arms,
        (
            Figure("share of the dead end", "dead", form=".3f"),
            Figure("total variation of one run", "variation"),
            Figure("estimated mass", "estimate", form=".3f"),
            Figure("questions a token", "questions"),
        ),
        [
            PublishedClaim(
                "weights drop the texts of dead ends",
                "share of the dead end",
                f"awrs, {least}",
                f"masking, {least}",
                False,
            ),
            PublishedClaim(
                "more particles are nearer", "total variation of one run", f"awrs, {least}", "awrs, 8", False
            ),
            PublishedClaim("more particles are nearer", "total variation of one run", "awrs, 8", "awrs, 1", False),
        ],
        "method, particles",
    )


def questions(settings: Settings) -> Study:
    lm = loaded(settings.model)
    vocabulary = lm.network.vocabulary

    def arm(name: str, estimator: str) -> Arm:
        def measure(subject: str) -> Mapping[str, float]:
            example = json.dumps({"name": "x", "number": 1})
            said = f"Describe {subject} as a JSON object with the keys name and number, such as {example}."
            asked: Any = {"structured_outputs": {"json": SCHEMA}, "temperature": 1.0, "max_new_tokens": settings.tokens}
            try:
                reply: Any = lm.chat(
                    [{"role": "user", "content": said}],
                    method=f"awrs(particles=1, ess_threshold=0, {estimator})",
                    seed=settings.seed,
                    **asked,
                )
            except ConstraintFailed:
                return {"dead": 1.0}
            asked_a_token = reply.stats.details["questions"] / len(reply.token_ids)
            return {"dead": 0.0, "questions": asked_a_token, "share": asked_a_token / vocabulary}

        return Arm(name, measure)

    arms = [arm("one order", "estimator=recursive"), arm("as the code chooses", "estimator=auto")]
    return Study(
        f"A JSON object of two keys, at temperature 1, about {len(SUBJECTS)} subjects; masking asks about {vocabulary} tokens.",
        SUBJECTS,
        arms,
        (
            Figure("questions a token", "questions", form=".1f"),
            Figure("at the middle", "questions", middle=True, form=".1f"),
            Figure("of the vocabulary", "share", form=".3%"),
            Figure("dead", "dead", form=".0%", share=True),
        ),
        [PublishedClaim("few questions", "of the vocabulary", one.name, FEW, False) for one in arms],
        "estimator",
        lm=lm,
    )


EXPERIMENT = Experiment(
    "awrs",
    "Adaptive weighted rejection: laws and questions",
    "Lipkin et al., AWRS, COLM 2025, arXiv 2504.05410",
    ("experiments.awrs", "decodery.constraints", "decodery.sampling.structured"),
    Settings(),
    {"language": language, "questions": questions},
)
