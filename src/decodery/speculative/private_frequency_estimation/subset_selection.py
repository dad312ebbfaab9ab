"""Subset selection: one value among few is reported as a random set that holds it more often than any other value.

Ye and Barg, Optimal schemes for discrete distribution estimation under locally differential privacy, 2018; the part of modular
subset selection (arXiv 2511.11569) that looks at the user's value. Everything that decides the privacy is in whole numbers.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal, localcontext
from fractions import Fraction
from functools import cached_property
from math import comb

from decodery.errors import BadInput

BITS = 64
"""The user's value is put into the set with a probability that is a multiple of 2^-64, rounded down."""
DIGITS = 60
LEAST, MOST = 0.01, 20.0
"""Budgets that are taken."""


@dataclass(frozen=True)
class SubsetSelection:
    """size: of the domain 0..size - 1, at least 2. epsilon: the budget: no set is more than exp(epsilon) times as likely for
    one value as for another. Raises BadInput for what does not fit."""

    size: int
    epsilon: float

    def __post_init__(self) -> None:
        if self.size < 2:
            raise BadInput(f"a value is hidden among at least 2, not {self.size}.")
        if not LEAST <= self.epsilon <= MOST:
            raise BadInput(f"epsilon must lie in {LEAST:g}..{MOST:g}, not {self.epsilon:g}.")

    @cached_property
    def chosen(self) -> int:
        """Values of a set: size / (exp(epsilon) + 1), rounded, but at least one and not all."""
        return int(min(max(round(self.size / (float(self._odds) + 1)), 1), self.size - 1))

    @cached_property
    def _odds(self) -> Decimal:
        """exp(epsilon), rounded down."""
        with localcontext() as context:
            context.prec = DIGITS
            context.rounding = ROUND_FLOOR
            return Decimal(self.epsilon).exp() - Decimal(10) ** (3 - DIGITS)

    @cached_property
    def _threshold(self) -> int:
        with localcontext() as context:
            context.prec = DIGITS
            context.rounding = ROUND_FLOOR
            mass = self.chosen * self._odds
            return int(mass * 2**BITS / (mass + self.size - self.chosen))

    @property
    def own(self) -> Fraction:
        """Probability that the set holds the user's value (p of the paper), exactly as it is drawn."""
        return Fraction(self._threshold, 2**BITS)

    @property
    def other(self) -> Fraction:
        """Probability that it holds any one other value (q of the paper)."""
        p, m, w = self.own, self.size, self.chosen
        return (p * (w - 1) + (1 - p) * w) / (m - 1)

    def probability(self, holds: bool) -> Fraction:
        """Of one set, for a user whose value it holds or does not hold."""
        p, m, w = self.own, self.size, self.chosen
        return p / comb(m - 1, w - 1) if holds else (1 - p) / comb(m - 1, w)

    @property
    def gain(self) -> float:
        """What one report tells of the share of a rare value: the inverse of its variance, (p - q)^2 / (q (1 - q))."""
        p, q = self.own, self.other
        return float((p - q) ** 2 / (q * (1 - q)))

    @property
    def bits(self) -> int:
        """Length of a set as its rank among all."""
        return (comb(self.size, self.chosen) - 1).bit_length()

    def draw(self, value: int) -> tuple[int, ...]:
        """A set for the value, ascending, from the system's secure generator."""
        holds = secrets.randbits(BITS) < self._threshold
        places = secrets.SystemRandom().sample(range(self.size - 1), self.chosen - holds)
        others = [place + (place >= value) for place in places]
        return tuple(sorted([*others, value] if holds else others))

    def rank(self, values: tuple[int, ...]) -> int:
        """The place of an ascending set in the combinatorial number system (colexicographic order), from 0."""
        rank, left = 0, len(values)
        held = frozenset(values)
        binomial = comb(self.size - 1, left)  # of (value, left), kept up step by step: both change by one at a time
        for value in range(self.size - 1, -1, -1):
            if left == 0:
                break
            if value in held:
                rank += binomial
                binomial = binomial * left // value if value else 0
                left -= 1
            else:
                binomial = binomial * (value - left) // value if value else 0
        return rank

    def at(self, rank: int) -> tuple[int, ...]:
        """The set at a place. Raises BadInput where there is none."""
        if not 0 <= rank < comb(self.size, self.chosen):
            raise BadInput(f"there is no set of {self.chosen} of {self.size} values at place {rank}.")
        values, left = [], self.chosen
        binomial = comb(self.size - 1, left)
        for value in range(self.size - 1, -1, -1):
            if left == 0:
                break
            if rank >= binomial:
                values.append(value)
                rank -= binomial
                binomial = binomial * left // value if value else 0
                left -= 1
            else:
                binomial = binomial * (value - left) // value if value else 0
        return tuple(reversed(values))
