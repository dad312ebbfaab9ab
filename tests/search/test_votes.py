"""Votes that weigh: what wins, whose run stands for it, and its share. The plain count is tested with its first user, HEX."""

from __future__ import annotations

import pytest

from decodery.search.votes import count, decided


def test_weights_decide_and_make_the_share() -> None:
    answers: dict[tuple[int, int], str | None] = {(0, 0): "a", (0, 1): "b", (0, 2): "a", (0, 3): None}
    vote = count(answers, {(0, 0): 0.25, (0, 1): 2.0, (0, 2): 0.75, (0, 3): 9.0})
    assert (vote.winner, vote.run) == ("b", (0, 1))
    assert list(vote.histogram.items()) == [("b", 2.0), ("a", 1.0)]
    assert vote.consensus == pytest.approx(2 / 3), "who abstains weighs nothing"


def test_votes_that_weigh_nothing_are_votes_without_a_share() -> None:
    vote = count({(0, 0): "b", (0, 1): "a"}, {(0, 0): 0.0, (0, 1): 0.0})
    assert (vote.winner, vote.run, vote.consensus) == ("b", (0, 0), 0.0)
    assert list(vote.histogram) == ["b", "a"]


def test_a_tie_is_decided_by_who_came_first() -> None:
    """So an answer may be decided that another can still draw level with, and not one that an earlier run can."""
    assert decided({(0, 0): "a", (0, 1): "a"}, [(0, 2), (0, 3)])
    assert not decided({(0, 2): "a", (0, 3): "a"}, [(0, 0), (0, 1)])
    assert not decided({(0, 0): "a", (0, 1): "a"}, [(0, 2), (0, 3), (0, 4)])
    assert not decided({(0, 0): "b", (0, 1): "a", (0, 2): "a"}, [(0, 3)]), "b has the earlier run"
    assert decided({(0, 0): "a", (0, 1): "b", (0, 2): "a"}, [(0, 3)])
