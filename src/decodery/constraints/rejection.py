"""Tokens that a constraint allows, drawn by rejection, with unbiased estimates of how much the constraint leaves.

Lipkin et al., Fast Controlled Generation from Language Models with Adaptive Weighted Rejection Sampling, COLM 2025, arXiv
2504.05410. A constraint is asked of one token at a time: tokens are drawn without replacement until one is allowed. The
token has exactly the law of masking; what was rejected on the way tells the mass of what is allowed, for which masking needs
the whole vocabulary. Every estimator here is properly weighted: the expectation of its weight, over the draws that give a
token, is that token's probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from jaxtyping import Float64
    from torch import Tensor

NOTHING_LEFT = 1e-5
"""Where less mass than this is not rejected yet, no division by it is trusted, and the weight is 0."""
SURE = 2 / 3
"""From this probability of the likeliest token on, an order of tokens is decided by fewer than two expected questions."""
ESTIMATORS = ("auto", "recursive", "geometric", "traces")


class Draws(Protocol):
    """Random decisions, each at an address of its own."""

    def pick(self, masses: Tensor, index: tuple[int, ...]) -> int:
        """An entry of `masses` [n], in proportion to them."""
        ...

    def accept(self, probability: float, index: tuple[int, ...]) -> bool:
        """True with this probability."""
        ...


@dataclass(frozen=True)
class Drawn:
    """token: the drawn one; None where none was found. weight: the estimate of the allowed mass, which is 0 then. questions:
    how often the constraint was asked."""

    token: int | None
    weight: float
    questions: int


class Questions:
    """A constraint at one place, which is asked of each token once at most; and how often it was asked."""

    def __init__(self, legal: Callable[[int], bool]):
        self._legal, self._known = legal, dict[int, bool]()

    def __call__(self, token: int) -> bool:
        if token not in self._known:
            self._known[token] = bool(self._legal(token))
        return self._known[token]

    @property
    def number(self) -> int:
        """How many tokens it was asked about."""
        return len(self._known)


def drawn(
    law: Float64[Tensor, "vocabulary"],
    legal: Callable[[int], bool],
    draws: Draws,
    estimator: str = "auto",
    max_accepts: int = 2,
    max_rejects: int | None = None,
    traces: int = 1,
) -> Drawn:
    """A token of `law` that is legal, and the weight.

    law: [vocabulary] float64 probabilities, of sum 1. legal: the constraint, asked of tokens of positive probability alone.
    estimator: one of ESTIMATORS; "auto" is the official code's choice: geometric where more than two accepts are wanted or
    a token is likelier than 2/3, else recursive. max_accepts: passes of the geometric one. max_rejects: after so many the
    weight is 0; None: as many as there are. traces: extra orders of "traces", each of which is one more sample of the mass.
    """
    asked = Questions(legal)
    if estimator == "auto":
        estimator = "geometric" if max_accepts > 2 or float(law.max()) >= SURE else "recursive"
    most = math.inf if max_rejects is None else max_rejects
    if estimator == "recursive":
        token, weight = _recursive(law, asked, draws, most)
    elif estimator == "geometric":
        token, weight = _geometric(law, asked, draws, max_accepts, most)
    else:
        token, weight = _traces(law, asked, draws, traces)
    return Drawn(token, weight, asked.number)


def first_legal(law: Float64[Tensor, "vocabulary"], legal: Callable[[int], bool], draws: Draws) -> Drawn:
    """Adaptive rejection alone: the token, and the weight 1 that masking token by token pretends (0 where nothing is legal)."""
    asked = Questions(legal)
    token, _ = _walk(law.clone(), asked, draws, 0)
    return Drawn(token, 0.0 if token is None else 1.0, asked.number)


def _walk(left: Tensor, legal: Questions, draws: Draws, trace: int) -> tuple[int | None, list[int]]:
    """The first legal token of an order, and the rejected ones before it, whose masses are taken out of `left`."""
    rejected: list[int] = []
    while bool((left > 0).any()):
        token = draws.pick(left, (trace, len(rejected)))
        if legal(token):
            return token, rejected
        rejected.append(token)
        left[token] = 0.0
    return None, rejected


def _traces(law: Tensor, legal: Questions, draws: Draws, traces: int) -> tuple[int | None, float]:
    """The paper's estimator: one order finds the token, each further one counts how many more would be rejected. The average is
    taken over the estimates, since one over all counts together is biased."""
    left = law.clone()
    token, rejected = _walk(left, legal, draws, 0)
    if token is None:
        return None, 0.0
    kept = 1.0 - float(law[rejected].sum()) if rejected else 1.0
    counts = [len(_walk(left.clone(), legal, draws, 1 + trace)[1]) for trace in range(traces)]
    return token, sum(kept / (len(rejected) + more + 1) for more in counts) / traces


def _recursive(law: Tensor, legal: Questions, draws: Draws, most: float) -> tuple[int | None, float]:
    """The estimator of one order: with X the first token of an order, E f = P(X) f(X) + (1 - P(X)) E[f | not X]."""
    left, rejected, logarithm, rejects = law.clone(), 0.0, 0.0, 0
    while bool((left > 0).any()):
        token = draws.pick(left, (0, rejects))
        mass = float(law[token])
        left[token] = 0.0
        last = not bool((left > 0).any())
        share = 1.0 if last else mass / (1.0 - rejected)
        if legal(token):
            if rejects == most - 1:
                return token, math.exp(logarithm)
            next_is_legal = last or legal(draws.pick(left, (1, rejects)))
            return token, math.exp(logarithm) * (1.0 if next_is_legal else share)
        rejects += 1
        rejected += mass
        if last or rejects >= most or rejected >= 1.0 - NOTHING_LEFT:
            return None, 0.0
        logarithm += math.log1p(-share)
    return None, 0.0


def _geometric(law: Tensor, legal: Questions, draws: Draws, passes: int, most: float) -> tuple[int | None, float]:
    """The estimator of several passes: tokens that were rejected are not drawn again, but counted as often as they would have
    been ("phantom" rejects)."""
    left, rejected, rejects, accepts = law.clone(), 0.0, 0, 0
    found: int | None = None
    for number in range(passes):
        order, step = left.clone(), 0
        while rejects < most and bool((order > 0).any()):
            if rejected >= 1.0 - NOTHING_LEFT:
                return (found, 0.0) if found is None else (found, _estimate(accepts, rejects, passes, most))
            token = draws.pick(order, (number, step))
            while rejects < most and rejected > 0 and draws.accept(rejected, (number, step, rejects)):
                rejects += 1
            step += 1
            if rejects >= most:
                break
            if legal(token):
                accepts += 1
                found = token if found is None else found
                break
            rejects += 1
            rejected += float(law[token])
            order[token] = left[token] = 0.0
        if rejects >= most:
            break
    return found, _estimate(accepts, rejects, passes, most) if found is not None else 0.0


def _estimate(accepts: int, rejects: int, passes: int, most: float) -> float:
    return min(passes - 1, accepts) / (accepts + min(rejects, most) - 1)
