"""`decodery check` for methods that learn what a constraint leaves: does what they draw come to have the model's own law among
the valid texts?"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from decodery.evaluation.check_parts import CheckPart, Progress
from decodery.evaluation.weights_check import LANGUAGE, LENGTH, dead_end_model, masses
from decodery.testing.goodness import goodness_of_fit, total_variation

if TYPE_CHECKING:
    from decodery.constraints.grammar_aligned_decoding import GrammarAlignedDecoding

SINGLE, LEARNING, JUDGED = 20, 300, 500
"""Requests of one draw each, whose bounds are compared; draws that follow, to learn; and draws whose law is judged."""
PLACES = 100
"""More than the language has."""
ROUNDING = 1e-6
"""The model's scores are float32."""


def drawn(method: GrammarAlignedDecoding, seed: int) -> tuple[list[float], Sequence[Any]]:
    """The bounds of the language's mass after each of the first draws, and the replies of those that are judged."""
    lm = dead_end_model()
    asked: Any = {"structured_outputs": LANGUAGE, "temperature": 1.0, "max_new_tokens": LENGTH}
    learning = method.varied(keep="memory", warmup=0)
    bounds = [1.0]
    for number in range(SINGLE):
        reply: Any = lm.generate([0], method=learning, seed=seed + number, **asked)
        bounds.append(reply.stats.details["mass_bound"])
    judged: Any = lm.generate([0], method=learning.varied(warmup=LEARNING), seed=seed + SINGLE, n=JUDGED, **asked)
    return [*bounds, judged[0].stats.details["mass_bound"]], judged


def read_law(replies: Sequence[Any], exact: Mapping[str, float]) -> Mapping[str, float]:
    """How likely each text was to be drawn: its mass over its weight."""
    texts = {reply.text.removesuffix("c"): reply.weight for reply in replies}
    return {text: exact.get(text, 0.0) / weight for text, weight in texts.items()}


def aligned_parts(method: GrammarAlignedDecoding, significance: float, seed: int, tell: Progress) -> list[CheckPart]:
    """The experiments: the bound of the language's mass, and the law of what is drawn, as it is and as it shows."""
    if method.nodes < PLACES:
        return [CheckPart("law", None, f"nodes={method.nodes} leaves no room to learn a language of {PLACES} places")]
    exact = masses()
    mass = math.fsum(exact.values())
    aligned = {text: own / mass for text, own in exact.items()}
    tell("draws", 0, 1)
    bounds, replies = drawn(method, seed)
    tell("draws", 1, 1)
    falls = all(later <= earlier for earlier, later in itertools.pairwise(bounds))
    holds = min(bounds) >= mass - ROUNDING
    near = bounds[-1] <= mass + ROUNDING
    distance = total_variation(read_law(replies, exact), aligned)
    fit = goodness_of_fit(Counter(reply.text.removesuffix("c") for reply in replies), aligned)
    return [
        CheckPart(
            "bound",
            falls and holds and near,
            f"the bound of the mass of a language {'never rises' if falls else 'rises'}, is at least {min(bounds):.7f} and "
            f"ends at {bounds[-1]:.7f}, where the mass is {mass:.7f}",
            {"mass": mass, "bounds": bounds},
        ),
        CheckPart(
            "law",
            distance <= ROUNDING,
            f"after {SINGLE + LEARNING} draws the law of the next ones is {distance:.1g} from the model's law among the "
            f"{len(exact)} texts",
            {"total_variation": distance},
        ),
        CheckPart(
            "draws",
            fit.p_value >= significance,
            f"{JUDGED} draws have that law with p = {fit.p_value:.3g}, and {fit.impossible} of them are not in the language",
            {"p_value": fit.p_value, "impossible": fit.impossible},
        ),
    ]
