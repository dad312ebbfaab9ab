"""`decodery check` for methods that weigh the texts which they draw under a constraint: are the weights right on a language
whose law is known?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from decodery._lazy import np
from decodery.errors import ConstraintFailed
from decodery.evaluation.check_parts import CheckPart, Progress

if TYPE_CHECKING:
    from decodery.constraints.awrs import AdaptiveWeightedRejection
    from decodery.testing import SmallLanguageModel

LANGUAGE = {"regex": "a{5}|b[ab]{4}"}
"""Texts of five letters, of which those that begin with a have one end."""
DEAD_END = "a" * 5
LENGTH = 12
"""Tokens that a text may have."""
RUNS = 200
ERRORS = 4.0
"""Standard errors that the mean of the estimates may be off: a sound method is in one of 16,000 checks."""


def dead_end_law(prefix: Sequence[int]) -> list[float]:
    """Probabilities [3] of a, b and the end, behind a prompt of one token: the model likes to begin with a, and then hardly
    ever writes the four a that the language wants."""
    output = list(prefix)[1:]
    if len(output) >= 5:
        return [0.0, 0.0, 1.0]
    return [0.02, 0.98, 0.0] if output and output[0] == 0 else [0.45, 0.55, 0.0]


def dead_end_model() -> SmallLanguageModel:
    """A model of that law."""
    from decodery.testing import scripted_language_model
    from decodery.testing.scorers import TabularScorer

    return scripted_language_model(TabularScorer(3, order=None, given=dead_end_law), stop_ids=(2,))


def masses() -> Mapping[str, float]:
    """The probability of each text of the language."""
    found = {}
    for text in (DEAD_END, *("b" + "".join(rest) for rest in itertools.product("ab", repeat=4))):
        prefix = [0, *("ab".index(sign) for sign in text)]
        found[text] = math.prod(dead_end_law(prefix[: place + 1])[prefix[place + 1]] for place in range(5))
    return found


def run_weights(lm: SmallLanguageModel, method: Any, seed: int) -> tuple[Mapping[str, float], float, int]:
    """What one run makes of the language: the share of each text, its estimate of the language's mass, and how often it asked
    the constraint. Raises ConstraintFailed where all texts died."""
    asked: Any = {"structured_outputs": LANGUAGE, "temperature": 1.0, "max_new_tokens": LENGTH, "seed": seed}
    reply: Any = lm.generate([0], method=method, **asked)
    shares: dict[str, float] = {}
    for one in reply.stats.details["particles"]:
        text = one["text"].removesuffix("c")
        shares[text] = shares.get(text, 0.0) + math.exp(one["log_weight"])
    whole = math.fsum(shares.values())
    told = reply.stats.details
    return {text: weight / whole for text, weight in shares.items()}, math.exp(told["log_mass"]), told["questions"]


def weights_parts(method: AdaptiveWeightedRejection, seed: int, tell: Progress) -> list[CheckPart]:
    """The experiment: the mean of the estimated masses against the exact one. Without weights there is nothing to decide."""
    if not method.proper_weights:
        return [CheckPart("weights", None, "texts are not weighed with proper_weights=False")]
    lm, exact = dead_end_model(), math.fsum(masses().values())
    found = []
    for number in range(RUNS):
        tell("weights", number, RUNS)
        try:
            found.append(run_weights(lm, method, seed + number)[1])
        except ConstraintFailed:
            found.append(0.0)
    tell("weights", RUNS, RUNS)
    mean, error = float(np.mean(found)), float(np.std(found)) / math.sqrt(RUNS)
    passed = abs(mean - exact) <= ERRORS * error + 1e-9
    detail = (
        f"the mass of a language of {len(masses())} texts is {exact:.4f}, and the mean of {RUNS} estimates is {mean:.4f}, with "
        f"a standard error of {error:.4f}"
    )
    return [CheckPart("weights", passed, detail, {"mass": exact, "mean": mean, "error": error, "runs": RUNS})]
