"""Distances over a small random alphabet: lower bounds, exact results by verifying, approximate ones by repeating."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from decodery.speculative.approximate_match_lookup.matching.distances import (
    Counts,
    Ids,
    correlation,
    heavy_light,
    operands,
    rounded,
)

BUCKETS = 64
"""Letters of the hashed alphabet where a caller does not say."""


def hashed(text: Ids, pattern: Ids, buckets: int, seed: int, repeat: int = 0) -> tuple[Ids, Ids]:
    """Both with every symbol replaced by a random letter of 0 .. buckets - 1; equal symbols get equal letters.

    So the distance of the hashed strings is a lower bound of their distance.
    """
    symbols, places = np.unique(np.concatenate([text, pattern]), return_inverse=True)
    generator = np.random.Generator(np.random.Philox(key=[seed, repeat]))
    letters = generator.integers(buckets, size=len(symbols))[places.reshape(-1)]
    return letters[: len(text)], letters[len(text) :]


def hashed_bounded(text: ArrayLike, pattern: ArrayLike, k: int, *, buckets: int = BUCKETS, seed: int = 0) -> Counts:
    """min(D, k + 1) [n - m + 1] int32, exact for every seed.

    Only alignments whose hashed distance is at most k are compared symbol by symbol: the randomness decides the time, not
    the result (Las Vegas).
    """
    text, pattern = operands(text, pattern)
    distances = np.minimum(heavy_light(*hashed(text, pattern, buckets, seed)), k + 1).astype(np.int32)
    places = np.flatnonzero(distances <= k)
    distances[places] = np.minimum(bounded_at(text, pattern, places, k), k + 1)
    return distances


def bounded_at(text: Ids, pattern: Ids, places: Ids, k: int, portion: int = 16) -> Counts:
    """min(D, k + 1) at the alignments `places` [c], each in 0 .. n - m; [c] int32.

    portion: symbols compared before the alignments that have more than k mismatches are dropped.
    """
    distances: Counts = np.zeros(len(places), dtype=np.int32)
    alive = np.arange(len(places))
    for start in range(0, len(pattern), portion):
        part = pattern[start : start + portion]
        windows = text[places[alive, None] + np.arange(start, start + len(part))]
        distances[alive] += (windows != part).sum(axis=1, dtype=np.int32)
        alive = alive[distances[alive] <= k]
        if not len(alive):
            break
    return np.minimum(distances, k + 1)


def approximate(
    text: ArrayLike, pattern: ArrayLike, eps: float = 0.25, delta: float = 0.01, *, seed: int = 0
) -> Counts:
    """Estimates of D [n - m + 1] int32, never above it; all at least (1 - eps) D with probability 1 - delta.

    Over an alphabet of ceil(2 / eps) random letters a mismatch is lost with probability at most eps / 2, so by Markov an
    estimate loses more than eps * D with probability at most 1/2; the largest of log2(n / delta) independent ones is kept.
    Each takes one transform per letter: O(n log m log(n / delta) / eps). eps in (0, 1), delta in (0, 1).
    """
    if not (0 < eps < 1 and 0 < delta < 1):
        raise ValueError(f"eps and delta must lie between 0 and 1, not {eps} and {delta}")
    text, pattern = operands(text, pattern)
    n, m = len(text), len(pattern)
    if n < m:
        return np.zeros(0, dtype=np.int32)
    buckets = math.ceil(2 / eps)
    best: Counts = np.zeros(n - m + 1, dtype=np.int32)
    for repeat in range(max(math.ceil(math.log2(n / delta)), 1)):
        letters, wanted = hashed(text, pattern, buckets, seed, repeat)
        matches = np.zeros(n - m + 1)
        for letter in np.unique(wanted).tolist():
            matches += correlation((letters == letter).astype(float), (wanted == letter).astype(float))
        np.maximum(best, m - rounded(matches), out=best, casting="unsafe")
    return best
