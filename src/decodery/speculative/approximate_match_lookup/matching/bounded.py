"""Distances up to k: a filter over an n-gram index for few near places, and jumps over equal runs for all places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decodery.speculative.approximate_match_lookup.matching.distances import Counts, Ids, ids, operands
from decodery.speculative.approximate_match_lookup.matching.hashed import bounded_at

Hashes = NDArray[np.uint64]

PRIME = (1 << 61) - 1
"""The Mersenne prime modulo which runs are hashed."""
LOW = np.uint64((1 << 31) - 1)
MIDDLE = np.uint64((1 << 30) - 1)


class NgramIndex:
    """Where each run of `size` tokens ends in a growing text. O(1) per token.

    size: tokens of the runs, at least 1. tokens: the text to begin with.
    """

    def __init__(self, size: int, tokens: Iterable[int] = ()):
        if size < 1:
            raise ValueError(f"the runs of an index need at least one token, not {size}")
        self.size = size
        self.tokens: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = {}
        self._array: Ids = np.zeros(0, dtype=np.int64)
        self._filled = 0
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append to the text."""
        known = len(self.tokens)
        self.tokens.extend(tokens)
        for end in range(max(known + 1, self.size), len(self.tokens) + 1):
            self._ends.setdefault(tuple(self.tokens[end - self.size : end]), []).append(end)

    def places(self, run: Sequence[int]) -> list[int]:
        """Where a run of `size` tokens starts in the text, ascending."""
        return [end - self.size for end in self._ends.get(tuple(run), ())]

    def text(self) -> Ids:
        """The text as an array [n] int64; a view that later tokens do not reach."""
        n, filled = len(self.tokens), self._filled
        if len(self._array) < n:  # capacity doubles, so that growing stays O(1) per token
            grown = np.zeros(2 * n, dtype=np.int64)
            grown[:filled] = self._array[:filled]
            self._array = grown
        if filled < n:
            self._array[filled:n] = self.tokens[filled:]
            self._filled = n
        return self._array[:n]

    def near(self, pattern: ArrayLike, k: int) -> tuple[Ids, Counts]:
        """The alignments with at most k mismatches, ascending [c] int64, and their distances [c] int32.

        Pigeonhole: of k + 1 disjoint blocks of the pattern one is free of mismatches, so only alignments that share a
        block are compared. Complete where a block is at least as long as the index's runs. Raises ValueError otherwise.
        """
        wanted = ids(pattern)
        m, blocks = len(wanted), k + 1
        if m // blocks < self.size:
            raise ValueError(f"{m} tokens in {blocks} blocks are too short for an index of runs of {self.size}")
        candidates: set[int] = set()
        last = len(self.tokens) - m
        for block in range(blocks):
            start = block * m // blocks
            run = wanted[start : start + self.size].tolist()
            candidates.update(place - start for place in self.places(run))
        places: Ids = np.array(sorted(place for place in candidates if 0 <= place <= last), dtype=np.int64)
        distances = bounded_at(self.text(), wanted, places, k)
        near = distances <= k
        return places[near], distances[near]


def k_bounded(text: ArrayLike, pattern: ArrayLike, k: int, index: NgramIndex | None = None) -> Counts:
    """min(D, k + 1) [n - m + 1] int32 by the pigeonhole filter; fast where few alignments share a block.

    index: an index of this very text, whose runs are no longer than m // (k + 1); made here where there is none.
    """
    text, pattern = operands(text, pattern)
    n, m = len(text), len(pattern)
    distances = np.full(max(n - m + 1, 0), k + 1, dtype=np.int32)
    if k >= m:  # no alignment is excluded
        return jumped(text, pattern, k)
    if n >= m:
        if index is None:
            index = NgramIndex(m // (k + 1), text.tolist())
        places, near = index.near(pattern, k)
        distances[places] = near
    return distances


def jumped(text: ArrayLike, pattern: ArrayLike, k: int, *, base: int = 0x9E3779B97F4A7C1) -> Counts:
    """min(D, k + 1) [n - m + 1] int32: from each alignment at most k + 1 jumps over longest common extensions.

    An extension is found by bisection on rolling hashes modulo 2^61 - 1: O(n k log m), all alignments at once. Hashes that
    collide can only hide mismatches, so the distances of at most k are verified; the result is exact for every base.
    """
    text, pattern = operands(text, pattern)
    n, m = len(text), len(pattern)
    alignments = np.arange(max(n - m + 1, 0))
    distances: Counts = np.zeros(len(alignments), dtype=np.int32)
    if not len(alignments):
        return distances
    powers = _powers(m, base)
    text_hashes, pattern_hashes = _prefix_hashes(text, base), _prefix_hashes(pattern, base)
    place = np.zeros(len(alignments), dtype=np.int64)  # how much of the pattern each alignment has compared
    alive = alignments
    for _ in range(k + 1):
        at = place[alive]
        low, high = np.zeros(len(alive), dtype=np.int64), m - at  # the extension's length lies in low .. high
        while bool((low < high).any()):
            length = (low + high + 1) // 2
            same = _run_hash(text_hashes, alive + at, length, powers) == _run_hash(pattern_hashes, at, length, powers)
            low, high = np.where(same, length, low), np.where(same, high, length - 1)
        mismatched = at + low < m
        distances[alive[mismatched]] += 1
        place[alive] = at + low + 1
        alive = alive[mismatched & (at + low + 1 < m)]
        if not len(alive):
            break
    near = np.flatnonzero(distances <= k)
    distances[near] = bounded_at(text, pattern, near, k)
    return distances


def _prefix_hashes(symbols: Ids, base: int) -> Hashes:
    """[n + 1]: the hash of the first i symbols, sum of (symbol + 1) * base^(i - 1 - j) modulo the prime."""
    value = 0
    values = [0]
    for symbol in symbols.tolist():
        value = (value * base + symbol + 1) % PRIME
        values.append(value)
    return np.array(values, dtype=np.uint64)


def _powers(count: int, base: int) -> Hashes:
    values = [1]
    for _ in range(count):
        values.append(values[-1] * base % PRIME)
    return np.array(values, dtype=np.uint64)


def _run_hash(prefixes: Hashes, start: Ids, length: Ids, powers: Hashes) -> Hashes:
    """Hashes of the runs [start, start + length), all of shape [c]."""
    return _reduced(prefixes[start + length] + np.uint64(PRIME) - _product(prefixes[start], powers[length]))


def _product(first: Hashes, second: Hashes) -> Hashes:
    """first * second modulo 2^61 - 1 in 64 bits: halves of 31 and 30 bits, with 2^61 = 1."""
    high1, low1 = first >> np.uint64(31), first & LOW
    high2, low2 = second >> np.uint64(31), second & LOW
    cross = high1 * low2 + high2 * low1  # below 2^62, worth 2^31
    total = ((high1 * high2) << np.uint64(1)) + (cross >> np.uint64(30)) + ((cross & MIDDLE) << np.uint64(31))
    return _reduced(_reduced(total) + low1 * low2)


def _reduced(values: Hashes) -> Hashes:
    """Values below 2^64 modulo 2^61 - 1."""
    folded: Hashes = (values & np.uint64(PRIME)) + (values >> np.uint64(61))
    return np.where(folded >= np.uint64(PRIME), folded - np.uint64(PRIME), folded)
