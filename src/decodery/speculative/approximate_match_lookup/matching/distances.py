"""Exact distances: by comparing, and by splitting the alphabet into frequent and rare symbols."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ids = NDArray[np.int64]
Counts = NDArray[np.int32]
Reals = NDArray[np.float64]

RESIDUAL = 0.25
"""A transform's result may be this far from a whole number; further off, its rounding is not to be trusted."""
PAIRS_AT_ONCE = 1 << 22
"""Matching pairs of rare symbols that are counted together; bounds the memory."""
PACKED_BASE = 4096
"""Least base of the digits in which packed products are kept apart."""


def ids(tokens: ArrayLike) -> Ids:
    """Token ids as an int64 array [n]."""
    array: Ids = np.asarray(tokens, dtype=np.int64)
    if array.ndim != 1:
        raise ValueError(f"token ids must have shape [n], not {list(array.shape)}")
    return array


def operands(text: ArrayLike, pattern: ArrayLike) -> tuple[Ids, Ids]:
    """Text and pattern as arrays. Raises ValueError for an empty pattern."""
    text_ids, pattern_ids = ids(text), ids(pattern)
    if not len(pattern_ids):
        raise ValueError("the pattern needs at least one token")
    return text_ids, pattern_ids


def direct(text: ArrayLike, pattern: ArrayLike) -> Counts:
    """D [n - m + 1] int32 by m vectorised comparisons: O(n m). The fastest form while m is below about a thousand."""
    text, pattern = operands(text, pattern)
    alignments = max(len(text) - len(pattern) + 1, 0)
    distances: Counts = np.zeros(alignments, dtype=np.int32)
    for place, symbol in enumerate(pattern.tolist()):
        distances += text[place : place + alignments] != symbol
    return distances


def heavy_light(text: ArrayLike, pattern: ArrayLike, *, pack2: bool = False) -> Counts:
    """D [n - m + 1] int32 in O(n sqrt(m log m)): frequent symbols by transforms, rare ones by their places.

    A symbol is frequent where the pattern has more than sqrt(m log2 m) of it. pack2: count two frequent symbols with one
    transform, as digits of one number. Source: Abrahamson, 1987. Raises ArithmeticError where float64 does not suffice.
    """
    text, pattern = operands(text, pattern)
    n, m = len(text), len(pattern)
    if n < m:
        return np.zeros(0, dtype=np.int32)
    symbols, counts = np.unique(pattern, return_counts=True)
    frequent = symbols[counts > math.sqrt(m * math.log2(max(m, 2)))]
    matches = np.zeros(n - m + 1, dtype=np.int64)
    if pack2:
        for first in range(0, len(frequent), 2):
            matches += _packed(text, pattern, frequent[first : first + 2].tolist())
    else:
        for symbol in frequent.tolist():
            matches += rounded(correlation((text == symbol).astype(float), (pattern == symbol).astype(float)))
    rare = np.flatnonzero(~np.isin(pattern, frequent))
    for starts in _pairs(text, pattern, rare):
        matches += np.bincount(starts[(starts >= 0) & (starts <= n - m)], minlength=n - m + 1)
    return (m - matches).astype(np.int32)


def _pairs(text: Ids, pattern: Ids, places: Ids) -> Iterator[Ids]:
    """Where the pattern would have to start (possibly outside) for each pair of a text place and one of these pattern
    places that carry the same symbol; in portions."""
    order = np.argsort(text, kind="stable")
    ordered = text[order]
    first = np.searchsorted(ordered, pattern[places], "left")
    sizes = np.searchsorted(ordered, pattern[places], "right") - first
    ends = np.cumsum(sizes)
    done = 0
    while done < len(places):
        reached = int(ends[done - 1]) if done else 0
        upto = max(int(np.searchsorted(ends, reached + PAIRS_AT_ONCE, "right")), done + 1)
        part = slice(done, upto)
        size = sizes[part]
        within = np.arange(int(size.sum())) - np.repeat(np.cumsum(size) - size, size)
        yield order[np.repeat(first[part], size) + within] - np.repeat(places[part], size)
        done = upto


def _packed(text: Ids, pattern: Ids, symbols: list[int]) -> Ids:
    """Matches [n - m + 1] of one or two symbols from one correlation of (t1 + K t2) with (p1 + K p2).

    The product is t1p1 + K * cross + K^2 * t2p2. No alignment has more than m pairs of any sort, so K > m keeps the digits
    apart; K is a power of two of at least twice that.
    """
    base = max(PACKED_BASE, 1 << (2 * len(pattern)).bit_length())
    weights = [1, base][: len(symbols)]
    packed_text = sum(weight * (text == symbol) for weight, symbol in zip(weights, symbols, strict=True))
    packed_pattern = sum(weight * (pattern == symbol) for weight, symbol in zip(weights, symbols, strict=True))
    product = rounded(correlation(np.asarray(packed_text, dtype=float), np.asarray(packed_pattern, dtype=float)))
    return product % base + product // base**2


def correlation(text: Reals, pattern: Reals) -> Reals:
    """sum_j text[i + j] * pattern[j] for i = 0 .. n - m, [n - m + 1] float64, by real transforms.

    Overlap-save: the text is cut into overlapping blocks of at least four times the pattern, so that a long text costs
    O(n log m) and a circular product never wraps round into a result that is kept.
    """
    n, m = len(text), len(pattern)
    size = 1 << max(int(4 * m - 1).bit_length(), 6)
    size = min(size, 1 << max(int(n + m - 1).bit_length(), 1))
    step = size - m + 1
    blocks = -(-(n - m + 1) // step)
    padded = np.zeros((blocks - 1) * step + size)
    padded[:n] = text
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::step]
    spectrum = np.fft.rfft(windows, axis=1) * np.conj(np.fft.rfft(pattern, size))
    valid: Reals = np.fft.irfft(spectrum, size, axis=1)[:, :step].reshape(-1)[: n - m + 1]
    return valid


def rounded(values: Reals) -> Ids:
    """The whole numbers [n] int64 that a transform means. Raises ArithmeticError where they cannot be told."""
    whole = np.rint(values)
    worst = float(np.abs(values - whole).max(initial=0.0))
    if worst >= RESIDUAL:
        raise ArithmeticError(f"a transform is {worst:.2f} off a whole number; the text is too long for float64")
    return whole.astype(np.int64)
