"""How well a text fits the entries of a key, at the best place of both (Kuditipudi et al. 2023, section 2.4 and algorithm 3).

A table says what a token costs beside an entry: costs[token, entry], tokens being the text's different ones, numbered. Lower sums
mean more of a mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

AT_ONCE = 6144
"""Keys times entries that are worked on together: so many numbers and their table's rows stay in a processor's cache."""


def simple(costs: Float32[np.ndarray, "u n"], text: Int64[np.ndarray, "m"], block: int) -> float:
    """The least sum of costs over `block` successive tokens beside as many successive entries, which go round about."""
    length = costs.shape[1]
    sums = np.zeros(length)
    if block == len(text):
        # What entry the text begins at: sums[j] = Σ_i costs[text[i], i + j].
        for place, token in enumerate(text):
            _add_turned(sums, costs[token], place % length)
        return float(sums.min())
    best = np.inf
    for place, token in enumerate(text):
        _add_turned(sums, costs[token], place % length)
        if place >= block:
            _add_turned(sums, -costs[text[place - block]], (place - block) % length)
        if place >= block - 1:
            best = min(best, float(sums.min()))
    return best


def _add_turned(sums: np.ndarray, row: np.ndarray, by: int) -> None:
    """sums[j] += row[(j + by) mod length]."""
    sums[: len(row) - by] += row[by:]
    if by:
        sums[len(row) - by :] += row[:by]


def edit(
    tables: Sequence[Float32[np.ndarray, "u n"]], text: Int64[np.ndarray, "m"], block: int, gap: float
) -> Float32[np.ndarray, "keys"]:
    """Of each key's table the least cost of turning `block` successive tokens into as many successive entries, where one may be
    left out on either side for `gap`.

    All keys and first entries go through the table of the recursion together, and a row of it at a time: first what leaves out
    nothing or a token, for all columns, then what leaves out an entry, column by column.
    """
    length = tables[0].shape[1]
    size = max(1, AT_ONCE // length)
    found = [_edit(tables[start : start + size], text, block, gap) for start in range(0, len(tables), size)]
    return np.concatenate(found)


def _edit(
    tables: Sequence[Float32[np.ndarray, "u n"]], text: Int64[np.ndarray, "m"], block: int, gap: float
) -> Float32[np.ndarray, "keys"]:
    keys, length = len(tables), tables[0].shape[1]
    turned = np.arange(length + block - 1) % length
    # [token, entry and key]: entry j + 1 of all keys stands `keys` numbers after entry j.
    costs = np.ascontiguousarray(np.stack(tables, axis=2)[:, turned]).reshape(len(tables[0]), -1)
    lanes = length * keys
    windows = np.lib.stride_tricks.sliding_window_view(costs, lanes, axis=1)[:, ::keys]
    border = np.float32(gap) * np.arange(block + 1, dtype=np.float32)
    best = np.full(keys, np.inf, np.float32)
    above, here = np.empty((block + 1, lanes), np.float32), np.empty((block + 1, lanes), np.float32)
    spare = np.empty(lanes, np.float32)
    for first in range(len(text) - block + 1):
        above[:] = border[:, None]
        for row in range(1, block + 1):
            here[0] = border[row]
            np.add(above[:-1], windows[text[first + row - 1]], out=here[1:])
            above += np.float32(gap)
            np.minimum(here[1:], above[1:], out=here[1:])
            for column in range(1, block + 1):
                before = here[column - 1]
                if gap:
                    before = np.add(before, np.float32(gap), out=spare)
                np.minimum(here[column], before, out=here[column])
            above, here = here, above
        np.minimum(best, above[block].reshape(length, keys).min(axis=0), out=best)
    return best
