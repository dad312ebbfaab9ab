"""`decodery check` for methods of any-order models.

Plain decoding is `any-subset-autoregressive` there: one token per forward, in the same order. What is tested: what every
decoder of canvases owes, that greedy output is plain decoding's, and that the law is the joint law, decided by enumerating all
branches on tabular models, behind a prompt and in its holes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np

from decodery.engine.method import Method
from decodery.engine.settings import Settings
from decodery.evaluation.check_parts import CheckPart, Progress, attempt, dtype_of, random_prompts, undecided
from decodery.evaluation.diffusion_check import LEAVES, PROMPT_TOKENS, ROUNDING, TEMPERATURES, canvases
from decodery.language_model import LanguageModel
from decodery.testing.any_order import TabularOrders, any_order_language_model
from decodery.testing.goodness import total_variation
from decodery.testing.outputs import exact_outputs

PLAIN = "any-subset-autoregressive"
ORACLES = ((3, 3, 0), (3, 3, 1), (4, 2, 2))
"""Length, vocabulary and seed of the tabular models."""
HOLE = -1
TEXTS: dict[str, tuple[int, ...]] = {
    "behind a prompt": (0, 1, HOLE, HOLE, HOLE),
    "in holes": (0, 1, HOLE, 1, HOLE),
    "from the first position on": (HOLE, HOLE, 0),
}


def any_order_parts(
    lm: LanguageModel, method: Method, prompts: int | Sequence[str], seed: int, tell: Progress
) -> list[CheckPart]:
    """All experiments, on an any-order model and on tabular ones."""
    model = lm.network.masked
    assert model is not None
    ids = random_prompts(lm, prompts, seed, PROMPT_TOKENS, model.reserved)
    parts = [
        canvases(lm, method, ids, temperature, seed, f"canvas at temperature {temperature:g}", tell)
        for temperature in TEMPERATURES
    ]
    experiments = {"greedy identity": partial(_identity, lm, method, ids)}
    experiments |= {f"law by enumeration, {where}": partial(_enumerated, method, text) for where, text in TEXTS.items()}
    for place, (name, experiment) in enumerate(experiments.items()):
        tell(name, place, len(experiments))
        part = attempt(name, experiment, "here")
        parts.append(part if method.exactness.same_law else undecided(method.exactness, part))
    tell("law", len(experiments), len(experiments))
    return parts


def _identity(lm: LanguageModel, method: Method, ids: list[list[int]]) -> CheckPart:
    one, plain = (lm.generate(ids, given) for given in (method, PLAIN))
    same = sum(a.token_ids == b.token_ids for a, b in zip(one, plain, strict=True))
    forwards = [sum(reply.stats.forwards for reply in replies) for replies in (one, plain)]
    said = f"{same} of {len(ids)} outputs are those of {PLAIN}; {forwards[0]} forwards, there {forwards[1]}"
    passed: bool | None = same == len(ids)
    if not passed and dtype_of(lm) != "float32":
        passed, said = None, f"{said}; identity is promised in float32 only, and this is {dtype_of(lm)}"
    numbers = {"prompts": len(ids), "identical": same, "forwards": forwards[0], "plain_forwards": forwards[1]}
    return CheckPart("", passed, said, numbers)


def _enumerated(method: Method, text: tuple[int, ...]) -> CheckPart:
    """The law of all that stands from the first hole on."""
    distances = []
    for length, vocabulary, seed in ORACLES:
        start = 2 if text[0] != HOLE else 0
        oracle = TabularOrders.random(length, vocabulary, seed, start)
        lm = any_order_language_model(oracle)
        whole = [*text, *[HOLE] * (start + length - len(text))]
        prompt = [oracle.mask if token == HOLE else token for token in whole]
        settings = Settings(temperature=1.0, max_new_tokens=length, seed=0)
        law = exact_outputs(lm, method, prompt, settings, limit=LEAVES)
        distances.append(total_variation(law, _expected(oracle, whole)))
    said = "the law is off that of tabular models by " + ", ".join(f"{d:.2g}" for d in distances)
    numbers = {"total_variation": distances}
    return CheckPart("", max(distances) < ROUNDING, f"{said} (rounding: {ROUNDING:g})", numbers)


def _expected(oracle: TabularOrders, text: Sequence[int]) -> dict[tuple[int, ...], float]:
    """The joint law given what stands in a text, from its first hole on."""
    free, first = text[oracle.start :], text.index(HOLE) - oracle.start
    masses = {
        outcome[first:]: float(oracle.joint[outcome])
        for outcome in itertools.product(range(oracle.mask), repeat=len(free))
        if all(given in (HOLE, token) for given, token in zip(free, outcome, strict=True))
    }
    total = float(np.sum(list(masses.values())))
    return {outcome: mass / total for outcome, mass in masses.items()}
