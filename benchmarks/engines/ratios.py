"""Ratios of speeds with their spread."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from .race import Record

DRAWS = 2000
"""Of the bootstrap."""

Rates = Mapping[int, Mapping[int, float]]
"""Tokens per second by group and round."""


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one entrant is as another.

    value: geometric mean over the groups of prompts of the ratio of the medians over the rounds. low, high: its 95 % bootstrap
    interval over groups (equal to the value where there is one group). least, most: the geometric means of single rounds.
    """

    value: float
    low: float
    high: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}]"


def rates(records: Sequence[Record], entrant: str, batch: int) -> dict[int, dict[int, float]]:
    """Tokens per second of an entrant, by group and round."""
    found: dict[int, dict[int, float]] = {}
    for record in records:
        if record.entrant == entrant and record.batch == batch:
            found.setdefault(record.group, {})[record.round] = record.rate
    return found


def rate(found: Rates) -> float:
    """Tokens per second over all groups: the harmonic mean of the medians, each group counting alike."""
    medians = [median(by_round.values()) for by_round in found.values()]
    return len(medians) / sum(1 / value for value in medians)


def ratio(ours: Rates, theirs: Rates) -> Ratio | None:
    """Ours over theirs, of the groups and rounds that both have; None where there are none."""
    pairs: list[float] = []
    by_round: dict[int, list[float]] = {}
    for group in sorted(ours.keys() & theirs.keys()):
        common = sorted(ours[group].keys() & theirs[group].keys())
        if not common:
            continue
        pairs.append(median(ours[group][r] for r in common) / median(theirs[group][r] for r in common))
        for number in common:
            by_round.setdefault(number, []).append(ours[group][number] / theirs[group][number])
    if not pairs:
        return None
    chance = random.Random(0)
    draws = sorted(geometric(chance.choices(pairs, k=len(pairs))) for _ in range(DRAWS))
    single = [geometric(values) for values in by_round.values()]
    return Ratio(geometric(pairs), draws[int(0.025 * DRAWS)], draws[int(0.975 * DRAWS) - 1], min(single), max(single))


def geometric(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(math.log(value) for value in values) / len(values))
