"""Levenshtein's distance, against its definition."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest

from decodery.evaluation.edit_distance import distance_after, edit_distance


@cache
def slow(one: str, other: str) -> int:
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return slow(one[1:], other[1:])
    return 1 + min(slow(one[1:], other), slow(one, other[1:]), slow(one[1:], other[1:]))


def test_it_is_the_fewest_changes() -> None:
    words = ["".join(letters) for size in range(5) for letters in product("ab", repeat=size)]
    for one in words:
        for other in words:
            assert edit_distance(one, other) == slow(one, other)
    assert edit_distance("kitten", "sitting") == 3


@pytest.mark.parametrize(
    ("one", "other", "start", "share"),
    [
        ("abcd", "abxd", 2, 0.5),
        ("abcd", "abxd", 0, 0.25),
        ("ab", "abcd", 2, 1.0),
        ("ab", "ab", 2, 0.0),
        ("", "", 0, 0.0),
    ],
)
def test_what_comes_after_a_place(one: str, other: str, start: int, share: float) -> None:
    assert distance_after(one, other, start) == distance_after(other, one, start) == share
