"""Does a sample come from a law? Distances and tests with stated error rates."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Outcome = TypeVar("Outcome", bound=Hashable)
LEAST_EXPECTED = 5.0
"""Cells of the chi-square statistic expect at least this many counts; rarer outcomes share a cell."""


@dataclass(frozen=True)
class GoodnessOfFit:
    """Pearson's chi-square test of a sample against a law.

    p_value: chance of a statistic as large where the sample does come from the law; 0 where an impossible outcome was
    observed. total_variation: distance between the sample's shares and the law. expected_total_variation: what sampling
    noise alone makes of that distance, on average. impossible: observed outcomes of probability 0.
    """

    samples: int
    statistic: float
    degrees: int
    p_value: float
    total_variation: float
    expected_total_variation: float
    impossible: int


def goodness_of_fit(counts: Mapping[Outcome, int], law: Mapping[Outcome, float]) -> GoodnessOfFit:
    """Test counts of outcomes against their law (probabilities that sum to 1)."""
    from scipy.stats import chi2

    samples = sum(counts.values())
    cells: list[tuple[float, int]] = []
    rare_expected, rare_observed = 0.0, 0
    for outcome, probability in sorted(law.items(), key=lambda item: -item[1]):
        expected, observed = samples * probability, counts.get(outcome, 0)
        if expected >= LEAST_EXPECTED:
            cells.append((expected, observed))
        else:
            rare_expected, rare_observed = rare_expected + expected, rare_observed + observed
    if rare_expected >= LEAST_EXPECTED or not cells:
        cells.append((rare_expected, rare_observed))
    else:
        cells[-1] = (cells[-1][0] + rare_expected, cells[-1][1] + rare_observed)
    impossible = sum(count for outcome, count in counts.items() if not law.get(outcome))
    statistic = math.fsum((observed - expected) ** 2 / expected for expected, observed in cells if expected > 0)
    degrees = len(cells) - 1
    p_value = 1.0 if degrees == 0 else float(chi2.sf(statistic, degrees))
    outcomes = {*counts, *law}
    distance = math.fsum(abs(counts.get(o, 0) / samples - law.get(o, 0.0)) for o in outcomes) / 2
    # The mean absolute deviation of a binomial share is close to sqrt(2 p (1 - p) / (pi n)).
    noise = math.fsum(math.sqrt(2 * p * (1 - p) / (math.pi * samples)) for p in law.values()) / 2
    return GoodnessOfFit(samples, statistic, degrees, 0.0 if impossible else p_value, distance, noise, impossible)


def total_variation(first: Mapping[Outcome, float], second: Mapping[Outcome, float]) -> float:
    """Half the sum of absolute differences of two laws."""
    return math.fsum(abs(first.get(o, 0.0) - second.get(o, 0.0)) for o in {*first, *second}) / 2
