"""How well a text fits the entries of a key, at the best place of both (Kuditipudi et al. 2023, section 2.4 and algorithm 3).

A table says what a token costs beside an entry: costs[token, entry], tokens being the text's different ones, numbered. Lower
sums mean more of a mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Int64

AT_ONCE = 6144
"""Keys times entries that are worked on together: so many numbers, for each token of a block, stay in a processor's cache."""


def simple(
    tables: Sequence[Float32[np.ndarray, "u n"]], text: Int64[np.ndarray, "m"], block: int
) -> Float64[np.ndarray, "keys"]:
    """Of each key's table the least sum of costs over `block` successive tokens beside as many successive entries, which go
    round about."""
    return np.concatenate([_simple(portion, text, block) for portion in _portions(tables)])


def _simple(
    tables: Sequence[Float32[np.ndarray, "u n"]], text: Int64[np.ndarray, "m"], block: int
) -> Float64[np.ndarray, "keys"]:
    keys, length = len(tables), tables[0].shape[1]
    costs = _side_by_side(tables)
    sums, best = np.zeros(length * keys), np.full(keys, np.inf)
    # sums[j]: over the block so far, were the whole text to begin at entry j.
    for place, token in enumerate(text):
        _add_turned(sums, costs[token], place % length * keys)
        if place >= block:
            _add_turned(sums, -costs[text[place - block]], (place - block) % length * keys)
        if place >= block - 1:
            np.minimum(best, sums.reshape(length, keys).min(axis=0), out=best)
    return best


def _add_turned(sums: Float64[np.ndarray, "lanes"], row: Float32[np.ndarray, "lanes"], by: int) -> None:
    """sums[j] += row[(j + by) mod lanes]."""
    sums[: len(row) - by] += row[by:]
    if by:
        sums[len(row) - by :] += row[:by]


def _portions(tables: Sequence[Float32[np.ndarray, "u n"]]) -> list[Sequence[Float32[np.ndarray, "u n"]]]:
    size = max(1, AT_ONCE // tables[0].shape[1])
    return [tables[start : start + size] for start in range(0, len(tables), size)]


def _side_by_side(tables: Sequence[Float32[np.ndarray, "u n"]]) -> Float32[np.ndarray, "u lanes"]:
    """Tables of several keys as one, of entry and key: entry j + 1 of all keys stands `keys` numbers after entry j."""
    if len(tables) == 1:
        return tables[0]
    return np.stack(tables, axis=2).reshape(len(tables[0]), -1)


def edit(
    tables: Sequence[Float32[np.ndarray, "u n"]], text: Int64[np.ndarray, "m"], block: int, gap: float
) -> Float32[np.ndarray, "keys"]:
    """Of each key's table the least cost of turning `block` successive tokens into as many successive entries, where one may be
    left out on either side for `gap`.

    All keys and first entries go through the table of the recursion together, and a row of it at a time: first what leaves out
    nothing or a token, for all columns, then what leaves out an entry, column by column.
    """
    return np.concatenate([_edit(portion, text, block, gap) for portion in _portions(tables)])


def _edit(
    tables: Sequence[Float32[np.ndarray, "u n"]], text: Int64[np.ndarray, "m"], block: int, gap: float
) -> Float32[np.ndarray, "keys"]:
    keys, length = len(tables), tables[0].shape[1]
    lanes = length * keys
    beside = _side_by_side(tables)
    costs = np.concatenate([beside, beside[:, : (block - 1) * keys]], axis=1)  # beyond the end, from the beginning
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
