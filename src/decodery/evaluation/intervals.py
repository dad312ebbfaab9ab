"""Intervals of 95 %: Wilson's for shares, and the bootstrap over items for everything else.

Sources: Wilson, JASA 22, 1927; Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (percentile intervals).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 1000
"""Resamples of the bootstrap."""
LOW, HIGH = 2.5, 97.5
"""Percentiles that bound an interval."""
QUANTILE = 1.959964
"""Of the normal law: 97.5 % lie below."""


def wilson(right: int, count: int) -> tuple[float, float]:
    """The interval of a share. right: how many of `count`. Raises ValueError where count is below 1."""
    if count < 1:
        raise ValueError("a share of nothing has no interval")
    share, square = right / count, QUANTILE**2
    middle = share + square / (2 * count)
    half = QUANTILE * float(np.sqrt(share * (1 - share) / count + square / (4 * count**2)))
    low, high = ((middle + side * half) / (1 + square / count) for side in (-1, 1))
    return (0.0 if right == 0 else low), (1.0 if right == count else high)


def resamples(items: int, draws: int = DRAWS) -> Array:
    """How often each item counts: [draws + 1, items]. The first row is the sample itself; the others are drawn with
    replacement, the same for everything that is compared, so that differences are paired."""
    generator = np.random.Generator(np.random.Philox(key=items))
    drawn = generator.multinomial(items, [1.0 / items] * items, size=draws)
    return np.concatenate([np.ones((1, items)), drawn]).astype(np.float64)


def percentiles(values: Array) -> tuple[float, float] | None:
    """The interval of a figure. values: [draws + 1], the sample's own first. None where the resamples do not tell."""
    drawn = values[1:][np.isfinite(values[1:])]
    if len(drawn) < DRAWS // 2:
        return None
    low, high = np.percentile(drawn, (LOW, HIGH))
    return float(low), float(high)
