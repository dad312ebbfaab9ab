"""Boxes of texts: their volumes are probabilities, they tile the cube, and beginnings hold what goes on from them.

On a tiny model with 64 texts, whose law is known. A coder that hashes texts to points passes nothing of it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from decodery.errors import Refused
from decodery.sampling import Noise, Stage
from decodery.sampling.chance.arithmetic import Code
from decodery.sampling.chance.qmcpy import LowDiscrepancy
from decodery.sampling.volumes import (
    DIGITS,
    FINEST,
    Box,
    Coordinate,
    ExactInterval,
    FloatInterval,
    Interval,
    whole,
)
from decodery.testing import goodness_of_fit

VOCABULARY, LENGTH = 4, 3
KINDS: list[type[Interval]] = [ExactInterval, FloatInterval]
EXACT = Fraction(0)
Text = tuple[int, ...]
Law = Callable[[Text], Any]


@cache
def whole_law(text: Text) -> Any:
    return np.random.default_rng([3, *text]).dirichlet([0.8] * VOCABULARY)


@cache
def cut_law(text: Text) -> Any:
    """The two likeliest tokens alone."""
    law = whole_law(text).copy()
    law[np.argsort(law)[:-2]] = 0
    return law / law.sum()


def probability(text: Text, law: Law = whole_law) -> float:
    return math.prod(float(law(text[:place])[token]) for place, token in enumerate(text))


def box_of(text: Text, dimensions: int, kind: type[Interval] = ExactInterval, law: Law = whole_law) -> Box:
    box = Box([kind() for _ in range(dimensions)])
    for place, token in enumerate(text):
        box.take(law(text[:place]), token)
    return box


def exactly(numbers: Sequence[float | Fraction]) -> list[Coordinate]:
    return [Coordinate.exactly(Fraction(number)) for number in numbers]


def text_of(
    point: Sequence[Coordinate], length: int = LENGTH, kind: type[Interval] = ExactInterval, law: Law = whole_law
) -> Text:
    box, text = Box([kind() for _ in point]), ()
    while len(text) < length:
        token = box.find(law(text), point)
        box.take(law(text), token)
        text += (token,)
    return text


def holds(box: Box, point: Sequence[float | Fraction], slack: Fraction = EXACT) -> bool:
    return all(
        side.low - slack <= Fraction(number) < side.low + side.width + slack
        for side, number in zip(box.sides, point, strict=True)
    )


TEXTS = list(product(range(VOCABULARY), repeat=LENGTH))

# The law


@pytest.mark.parametrize("law", [whole_law, cut_law])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_uniform_points_decode_to_texts_of_the_law(kind: type[Interval], dimensions: int, law: Law) -> None:
    """Chi-square of 200 000 points over all texts, and of fewer for the other cases. Boxes of beginnings are made once."""
    count = 200_000 if (kind, dimensions, law) == (ExactInterval, 2, whole_law) else 20_000
    boxes = {
        text: box_of(text, dimensions, kind, law)
        for length in range(LENGTH)
        for text in product(range(VOCABULARY), repeat=length)
        if probability(text, law) > 0
    }
    counts: Counter[Text] = Counter()
    for row in np.random.default_rng(dimensions).integers(0, 1 << DIGITS, (count, dimensions)).tolist():
        point, text = [Coordinate(number, 1 << DIGITS) for number in row], ()
        for _ in range(LENGTH):
            text += (boxes[text].find(law(text), point),)
        counts[text] += 1
    assert goodness_of_fit(counts, {text: probability(text, law) for text in TEXTS}).p_value > 0.01


def test_digits_that_come_as_they_are_needed_are_those_of_the_number() -> None:
    """Of a long text, which takes many of them; and no more are asked for than needed."""
    digits = np.random.default_rng(5).integers(0, 1 << DIGITS, 100).tolist()
    asked: list[int] = []

    def more() -> int:
        asked.append(digits[len(asked)])
        return asked[-1]

    long = text_of([Coordinate.drawn(more)], 400)
    bits = -box_of(long, 1).log_volume / math.log(2)
    assert bits / DIGITS <= len(asked) <= bits / DIGITS + 2
    known = sum(Fraction(part, 1 << DIGITS * (place + 1)) for place, part in enumerate(digits))
    assert text_of(exactly([known]), 400) == long
    assert holds(box_of(long, 1), [known])


def test_an_end_that_is_not_of_the_number_asks_for_no_more_digits() -> None:
    """The first 53 digits say that it lies below a half, and at a quarter or above it."""
    for digits, law, token in ((2**52 - 1, [0.5, 0.5], 0), (2**51, [0.25, 0.75], 1)):
        given = iter([digits])
        assert Box([ExactInterval()]).find(np.array(law), [Coordinate.drawn(lambda given=given: next(given))]) == token  # type: ignore[misc]


# Volumes


@pytest.mark.parametrize("dimensions", [1, 2, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_volume_of_a_text_is_its_probability(kind: type[Interval], dimensions: int) -> None:
    """500 random texts, as long as doubles carry them in the dimensions."""
    generator = np.random.default_rng(8)
    for _ in range(500):
        length = int(generator.integers(1, 12 if dimensions == 1 else 40 if kind is ExactInterval else 16))
        text = tuple(generator.integers(0, VOCABULARY, length).tolist())
        expected = math.fsum(math.log(whole_law(text[:place])[token]) for place, token in enumerate(text))
        if kind is FloatInterval and expected < -25:
            continue
        box = box_of(text, dimensions, kind)
        assert abs(box.log_volume - expected) < 1e-6
        for side in box.sides:
            assert abs(float(side.low + side.width) - float(side.low) - float(side.width)) <= 2.0**-50
            assert side.log_width == pytest.approx(math.log(side.width), abs=1e-9)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_boxes_tile_the_cube(kind: type[Interval], dimensions: int) -> None:
    boxes = {text: box_of(text, dimensions, kind) for text in TEXTS}
    assert abs(math.fsum(math.exp(box.log_volume) for box in boxes.values()) - 1) < 1e-9
    slack = EXACT if kind is ExactInterval else Fraction(1, 1 << 50)
    for one, other in product(boxes, boxes):
        if one < other:
            assert not overlap(boxes[one], boxes[other], slack)
    points = np.random.default_rng(1).random((10_000 if kind is ExactInterval else 2_000, dimensions))
    for point in points.tolist():
        assert holds(boxes[text_of(exactly(point), kind=kind)], point, slack)


def overlap(one: Box, other: Box, slack: Fraction = EXACT) -> bool:
    return all(
        max(a.low, b.low) + slack < min(a.low + a.width, b.low + b.width)
        for a, b in zip(one.sides, other.sides, strict=True)
    )


@pytest.mark.parametrize("dimensions", [1, 2, 3, 16])
def test_the_box_of_a_beginning_holds_those_of_what_goes_on(dimensions: int) -> None:
    generator = np.random.default_rng(9)
    for _ in range(60):
        text = tuple(generator.integers(0, VOCABULARY, 12).tolist())
        boxes = [box_of(text[:length], dimensions) for length in range(13)]
        for wide, narrow in pairwise(boxes):
            for side, inner in zip(wide.sides, narrow.sides, strict=True):
                assert side.low <= inner.low
                assert inner.low + inner.width <= side.low + side.width


def test_tokens_cut_the_dimensions_in_turn() -> None:
    box, law = Box([ExactInterval() for _ in range(3)]), np.array([0.25, 0.75])
    for token in (1, 0, 1, 0):
        box.take(law, token)
    assert [(side.low, side.width) for side in box.sides] == [
        (Fraction(1, 4), Fraction(3, 16)),
        (0, Fraction(1, 4)),
        (Fraction(1, 4), Fraction(3, 4)),
    ]


# There and back


@pytest.mark.parametrize(("kind", "dimensions", "length"), [(ExactInterval, 1, 200), (ExactInterval, 2, 200),
                                                            (ExactInterval, 16, 200), (FloatInterval, 16, 40)])  # fmt: skip
def test_the_point_of_a_text_decodes_to_it(kind: type[Interval], dimensions: int, length: int) -> None:
    generator = np.random.default_rng(10)
    for _ in range(20):
        text = tuple(generator.integers(0, VOCABULARY, length).tolist())
        box = box_of(text, dimensions, kind)
        assert text_of(exactly(box.point), length, kind) == text
        for side, number in zip(box.sides, box.point, strict=True):  # within the middle half, and short
            assert side.low + side.width / 4 <= number <= side.low + side.width * Fraction(3, 4)
            assert number.denominator <= 8 / side.width


def test_masses_of_any_sum_cut_doubles_in_proportion() -> None:
    box = Box([FloatInterval()])
    box.take(np.array([1.0, 3.0]), 1)
    assert (box.sides[0].low, box.sides[0].width) == (Fraction(1, 4), Fraction(3, 4))


def test_doubles_say_when_they_are_exhausted() -> None:
    box, law = Box([FloatInterval()]), np.array([0.5, 0.5])
    for _ in range(48):
        box.take(law, 1)
    assert float(box.sides[0].width) == FINEST
    with pytest.raises(Refused, match="use precision=exact, or more dimensions"):
        box.take(law, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_ends_of_intervals_and_tokens_without_mass(kind: type[Interval]) -> None:
    """Parts hold their lower ends; 1 belongs to the last token with mass, and others without are never met."""
    law = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    expected = {0.0: 1, 0.2: 1, 0.25: 3, 0.5: 3, 1 - 2**-53: 3, 1.0: 3, -2.0: 1, 9.0: 3}
    for number, token in expected.items():
        assert Box([kind()]).find(law, exactly([number])) == token
    assert Box([kind()]).find(np.array([0.5, 0.5]), exactly([0.5 - 2**-50])) == 0
    for number, clipped in ((-2, 0), (0, 0), (Fraction(1, 3), Fraction(1, 3)), (1, 1), (9, 1)):
        coordinate = Coordinate.exactly(Fraction(number))
        assert Fraction(coordinate.numerator, coordinate.denominator) == clipped
    assert Box([kind()]).find(np.array([1.0, 1e-30]), exactly([1.0])) == 1, "however little mass it has"


def test_whole_numbers_are_the_masses() -> None:
    masses = np.float32([0.5, 0.0, 2**-36, 1e-30, 0.3]).astype(float)
    counts = whole(masses)
    assert counts.tolist()[:4] == [2**59, 0, 2**24, 1]
    assert int(counts[4]) == int(float(np.float32(0.3)) * 2**60)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_arithmetic_sampling_reads_the_same_token_from_the_same_number(dimensions: int) -> None:
    """As long as the digits of a double carry both: the sampler stretches what is left, the box keeps the number."""
    import torch

    for number in range(200):
        point = np.random.default_rng([number, 2]).random(dimensions).tolist()
        code = Code(LowDiscrepancy(), point, 0, Noise(0))
        text: Text = ()
        while -math.log2(max(probability(text), 1e-99)) < 20 and len(text) < 20:
            text += (code.choose(torch.from_numpy(whole_law(text)), len(text), Stage.TARGET),)
        assert text_of(exactly(point), len(text)) == text
        assert len(text) > 5


# What a toy fails


def hashed(text: Text, dimensions: int) -> list[Fraction]:
    """A point that a text is hashed to."""
    digest = hashlib.blake2b(bytes(text), digest_size=8 * dimensions).digest()
    return [
        Fraction(int.from_bytes(digest[8 * place : 8 * place + 8], "little"), 1 << 64) for place in range(dimensions)
    ]


def test_hashing_texts_to_points_has_no_volumes_no_tiles_and_no_beginnings() -> None:
    """The nearest hashed point decodes every point of the cube; nothing of the above holds of it."""
    places = np.array([[float(number) for number in hashed(text, 2)] for text in TEXTS])
    points = np.random.default_rng(1).random((4_000, 2))
    nearest = ((points[:, None] - places) ** 2).sum(-1).argmin(1)
    counts = Counter(TEXTS[place] for place in nearest)
    assert goodness_of_fit(counts, {text: probability(text) for text in TEXTS}).p_value < 1e-9
    inside = [holds(box_of(TEXTS[place], 2), point) for place, point in zip(nearest, points.tolist(), strict=True)]
    assert np.mean(inside) < 0.1
    within = [holds(box_of(text[:1], 2), hashed(text, 2)) for text in TEXTS]
    assert not all(within)
