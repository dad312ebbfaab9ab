"""How far two texts are apart, in tokens or characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def edit_distance(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Levenshtein's distance: the fewest insertions, deletions and exchanges that make one of the other."""
    row = list(range(len(other) + 1))
    for count, mine in enumerate(one, 1):
        before, row[0] = row[0], count
        for place, theirs in enumerate(other, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (mine != theirs))
    return row[-1]


def distance_after(one: Sequence[Any], other: Sequence[Any], start: int) -> float:
    """The edit distance of what comes from place `start` on, as a share of the longer of both; 0 where nothing comes."""
    longest = max(len(one), len(other)) - start
    return edit_distance(one[start:], other[start:]) / longest if longest > 0 else 0.0
