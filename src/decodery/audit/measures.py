"""How well a score tells members from others: area under the curve, true positives at a rate of false ones, intervals.

Each measure takes weights of the texts, so that one call measures the sample and all its resamples (`evaluation.intervals`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from decodery.evaluation.intervals import Array, resamples

Measure = Callable[[Array, Array, Array], Array]
"""(weights [draws, n], scores [n], members [n] of 0 and 1) -> [draws]."""


@dataclass(frozen=True)
class MeasuredRate:
    """An area or a share of true positives, with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def auc(weights: Array, scores: Array, members: Array) -> Array:
    """The chance that a member has the higher score of the two, ties ½: [draws]. NaN where one class has no weight."""
    right, wrong = _by_score(weights, scores, members)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((right * (wrong.cumsum(1) - wrong / 2)).sum(1) / (right.sum(1) * wrong.sum(1)))


def true_positives(rate: float) -> Measure:
    """The largest share of members above a threshold above which at most this share of the others lies."""

    def measure(weights: Array, scores: Array, members: Array) -> Array:
        right, wrong = (part[:, ::-1].cumsum(1) for part in _by_score(weights, scores, members))
        with np.errstate(divide="ignore", invalid="ignore"):
            caught, alarms = right / right[:, -1:], wrong / wrong[:, -1:]
        return np.asarray(np.where(alarms <= rate + 1e-12, caught, 0.0).max(1))

    return measure


def _by_score(weights: Array, scores: Array, members: Array) -> tuple[Array, Array]:
    """The weight of members and of others at each different score, lowest first: [draws, different scores] each."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    sorted_weights, mine = weights[:, order], members[order]
    return (
        np.add.reduceat(sorted_weights * mine, starts, axis=1),
        np.add.reduceat(sorted_weights * (1 - mine), starts, axis=1),
    )


def measured(measure: Measure, scores: Array, members: Array, level: float = 0.95, draws: int = 1000) -> MeasuredRate:
    """A measure with its percentile interval by the bootstrap over texts. level: of the interval."""
    drawn = measure(resamples(len(scores), draws), scores, members)
    low, high = np.nanpercentile(drawn[1:], (50 * (1 - level), 50 * (1 + level)))
    return MeasuredRate(float(drawn[0]), float(low), float(high))
