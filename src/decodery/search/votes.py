"""Votes of runs of a decoder, and who has won them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Key = tuple[int, int]
"""Block length and number of the seed: the name of a run, and its rank where answers are tied."""


@dataclass(frozen=True)
class Vote:
    """The count. winner: the answer with most votes; None where nobody voted. run: whose text stands for it. histogram:
    answer -> votes (or what they weigh), most first. consensus: the winner's share of them."""

    winner: str | None
    run: Key
    histogram: Mapping[str, float]
    consensus: float


def count(answers: dict[Key, str | None], weights: Mapping[Key, float] | None = None) -> Vote:
    """Count the answers of runs; None abstains. weights: what each run's vote weighs; 1 without. Raises ValueError without any
    run.

    Among tied answers the one that the smallest block has given wins, then that of the lowest seed; the same run stands for
    the answer. Where all abstain it is the run of the smallest block and the lowest seed.
    """
    if not answers:
        raise ValueError("there is no run to count")
    first, histogram = _tally(answers, weights)
    if not histogram:
        return Vote(None, min(answers), {}, 0.0)
    order = sorted(histogram, key=lambda answer: (-histogram[answer], first[answer]))
    winner = order[0]
    ordered = {answer: histogram[answer] for answer in order}
    whole = sum(histogram.values())
    return Vote(winner, first[winner], ordered, histogram[winner] / whole if whole else 0.0)


def decided(answers: dict[Key, str | None], remaining: Iterable[Key]) -> bool:
    """Whether no outcome of the remaining runs changes the winning answer."""
    left = sorted(remaining)
    if not left:
        return True
    first, histogram = _tally(answers)
    if not histogram:
        return False
    leader = count(answers).winner
    assert leader is not None
    # An answer that nobody has given yet may come from every remaining run.
    rivals = [(votes, first[answer]) for answer, votes in histogram.items() if answer != leader]
    for votes, key in [*rivals, (0, left[0])]:
        most = votes + len(left)
        if most > histogram[leader] or (most == histogram[leader] and min(key, left[0]) < first[leader]):
            return False
    return True


def _tally(
    answers: dict[Key, str | None], weights: Mapping[Key, float] | None = None
) -> tuple[dict[str, Key], dict[str, float]]:
    """Of each answer its first run, and its votes."""
    first: dict[str, Key] = {}
    histogram: dict[str, float] = {}
    for key in sorted(answers):
        answer = answers[key]
        if answer is not None:
            first.setdefault(answer, key)
            histogram[answer] = histogram.get(answer, 0) + (1 if weights is None else weights[key])
    return first, histogram
