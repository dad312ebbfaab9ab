"""Boxes of the unit cube that stand for texts: arithmetic coding over several dimensions in turn.

Celotti, Brodeur and Rouat, AriEL: volume coding for sentence generation, 2020, arXiv 2003.13600. Token t cuts dimension (t - 1)
mod d of the box before it in proportion to the law's probabilities, in the order of token ids. So the volume of a text's box is
its probability, boxes of texts of one length tile the cube, and the box of a beginning holds those of all that go on from it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from decodery._lazy import np
from decodery.errors import Refused

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

FINEST = 2.0**-48
"""Width of an interval of doubles below which rounding decides about tokens."""
COUNTS = 2.0**60
"""What whole numbers stand for a probability of 1: float32 ones of 2^-36 or more are kept as they are."""
DIGITS = 53
"""Binary digits that are drawn of a coordinate at a time."""


@dataclass
class Coordinate:
    """A number in [0, 1]: numerator / denominator. more: gives the next 53 binary digits of one that is only known to lie
    within 1 / denominator above that; None: it is exactly this."""

    numerator: int
    denominator: int
    more: Callable[[], int] | None = None

    @classmethod
    def exactly(cls, value: Fraction) -> Coordinate:
        """A number that is known, brought into [0, 1]."""
        clipped = min(max(value, Fraction(0)), Fraction(1))
        return cls(clipped.numerator, clipped.denominator)

    @classmethod
    def drawn(cls, more: Callable[[], int]) -> Coordinate:
        """A number whose digits come as they are needed."""
        return cls(more(), 1 << DIGITS, more)

    def refine(self) -> None:
        """Know 53 digits more."""
        assert self.more is not None
        self.numerator = (self.numerator << DIGITS) + self.more()
        self.denominator <<= DIGITS


class Interval(ABC):
    """One side of a box, which begins as [0, 1)."""

    @abstractmethod
    def find(self, masses: Float64[np.ndarray, "n"], coordinate: Coordinate) -> int:
        """In whose part of the interval a coordinate of it lies, where entries have parts in proportion to masses [n], float64
        with a positive sum. Parts hold their lower ends; 1 belongs to the last entry with mass."""

    @abstractmethod
    def shrink(self, masses: Float64[np.ndarray, "n"], place: int) -> None:
        """Become the part of an entry with mass."""

    @property
    @abstractmethod
    def low(self) -> Fraction:
        """Its lower end."""

    @property
    @abstractmethod
    def width(self) -> Fraction:
        """How wide it is."""

    @property
    @abstractmethod
    def log_width(self) -> float:
        """In nats."""


class ExactInterval(Interval):
    """In whole numbers, so that nothing is ever rounded but the masses, once."""

    def __init__(self) -> None:
        self._low, self._width, self._scale = 0, 1, 1

    def find(self, masses: Float64[np.ndarray, "n"], coordinate: Coordinate) -> int:
        sums = whole(masses).cumsum()
        total = int(sums[-1])
        while True:
            unit = self._width * coordinate.denominator
            first = (coordinate.numerator * self._scale - self._low * coordinate.denominator) * total
            places = [first // unit]
            if coordinate.more is not None:
                places.append((first + self._scale * total - 1) // unit)
            found = {int(sums.searchsorted(min(max(place, 0), total - 1), "right")) for place in places}
            if len(found) == 1:
                return found.pop()
            coordinate.refine()

    def shrink(self, masses: Float64[np.ndarray, "n"], place: int) -> None:
        counts = whole(masses)
        self._low = self._low * int(counts.sum()) + self._width * int(counts[:place].sum())
        self._width *= int(counts[place])
        self._scale *= int(counts.sum())

    @property
    def low(self) -> Fraction:
        return Fraction(self._low, self._scale)

    @property
    def width(self) -> Fraction:
        return Fraction(self._width, self._scale)

    @property
    def log_width(self) -> float:
        return math.log(self._width) - math.log(self._scale)


def whole(masses: Float64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Masses with a sum of about 1 as whole numbers; whatever is positive stays so."""
    counts = np.rint(masses * COUNTS).astype(np.int64)
    counts[(counts == 0) & (masses > 0)] = 1
    return counts


class FloatInterval(Interval):
    """In doubles, which carry about 48 bits: with few dimensions a short text alone. Raises Refused beyond."""

    def __init__(self) -> None:
        self._low, self._width = 0.0, 1.0

    def find(self, masses: Float64[np.ndarray, "n"], coordinate: Coordinate) -> int:
        edges = self._low + self._width * (masses.cumsum() / masses.sum())
        edges[-1] = self._low + self._width
        place = int(edges.searchsorted(coordinate.numerator / coordinate.denominator, "right"))
        return min(place, int(masses.nonzero()[0][-1]))

    def shrink(self, masses: Float64[np.ndarray, "n"], place: int) -> None:
        total = masses.sum()
        before = float(masses.cumsum()[place - 1] / total) if place else 0.0
        self._low += self._width * before
        self._width *= float(masses[place] / total)
        if self._width < FINEST:
            raise Refused(
                "the box of this text is narrower than doubles can tell apart; use precision=exact, or more dimensions."
            )

    @property
    def low(self) -> Fraction:
        return Fraction(self._low)

    @property
    def width(self) -> Fraction:
        return Fraction(self._width)

    @property
    def log_width(self) -> float:
        return math.log(self._width)


class Box:
    """The box of a text that grows. sides: one interval for each dimension."""

    def __init__(self, sides: Sequence[Interval]):
        self.sides, self._taken = list(sides), 0
        self._centres = [_central(side) for side in sides]  # a token moves one of them

    @property
    def _side(self) -> int:
        return self._taken % len(self.sides)

    def find(self, masses: Float64[np.ndarray, "n"], point: Sequence[Coordinate]) -> int:
        """The token whose part of the box holds a point of it. masses: of all tokens."""
        return self.sides[self._side].find(masses, point[self._side])

    def take(self, masses: Float64[np.ndarray, "n"], token: int) -> None:
        """Become the part of a token with mass."""
        side = self._side
        self.sides[side].shrink(masses, token)
        self._centres[side] = _central(self.sides[side])
        self._taken += 1

    @property
    def log_volume(self) -> float:
        """The log probability of its text, in nats."""
        return math.fsum(side.log_width for side in self.sides)

    @property
    def point(self) -> list[Fraction]:
        """A point that stands for it: the centre, to as few binary digits as keep it within the middle half."""
        return list(self._centres)


def _central(side: Interval) -> Fraction:
    width = side.width
    step = Fraction(1, 4 << (width.denominator // width.numerator).bit_length())
    return (side.low + width / 2) // step * step
