"""Arithmetic codes by hand: which part of a number each token takes, what is left of it, and where its digits are spent."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate

import pytest
import torch

from decodery.sampling import Noise, Stage
from decodery.sampling.chance import Arithmetic, DrawnSample
from decodery.sampling.chance.arithmetic import COARSEST, FINEST, Code, permutation
from decodery.sampling.noise import Draw

LAWS = [[0.5, 0.25, 0.25], [0.125, 0.375, 0.5], [0.25, 0.75, 0.0], [0.0, 0.5, 0.5]]


def _code(start: float, shuffle: int | None = None) -> Code:
    return Code(Arithmetic(), (start,), 3, Noise(7, 1), shuffle)


@pytest.mark.parametrize("start", [0.0, 0.1, 0.3, 0.49, 0.5, 0.7, 0.9, 1 - FINEST])
def test_a_number_is_read_part_by_part(start: float) -> None:
    """Against fractions: the masses are powers of two, so that nothing is rounded but the quotient."""
    code, left = _code(start), Fraction(start)
    for place, law in enumerate(LAWS):
        ends = list(accumulate(map(Fraction, law)))
        expected = next(token for token, end in enumerate(ends) if left < end)
        left = (left - ends[expected]) / Fraction(law[expected]) + 1
        assert code.choose(torch.tensor(law, dtype=torch.float64), 3 + place, Stage.TARGET) == expected
        [(number, step)] = code._codes[4 + place]
        assert number == pytest.approx(float(left), abs=1e-12)
        assert 0 <= number < 1
        left = Fraction(number)
    masses = [law[token] for law, token in zip(LAWS, _read(start), strict=True)]
    assert step == pytest.approx(FINEST / torch.tensor(masses, dtype=torch.float64).prod().item())


def _read(start: float) -> list[int]:
    code = _code(start)
    return [code.choose(torch.tensor(law, dtype=torch.float64), 3 + i, Stage.TARGET) for i, law in enumerate(LAWS)]


@pytest.mark.parametrize(("spent", "fresh"), [(20, False), (21, False), (22, True), (30, True)])
def test_spent_digits_are_followed_by_fresh_ones(spent: int, fresh: bool) -> None:
    """A token of mass 2^-n makes the step 2^n times as coarse; beyond 2^-32 the noise of the next position adds digits."""
    share = 2.0**-spent
    code = _code(share / 2)
    code.choose(torch.tensor([share, 1 - share], dtype=torch.float64), 3, Stage.TARGET)
    step = FINEST / share
    assert (step > COARSEST) == fresh
    digits = step * Noise(7, 1).uniform(4, Stage.TARGET, ("digits",)) if fresh else 0.0
    assert code._codes[4] == ((0.5 + digits, FINEST if fresh else step),)


def test_of_several_numbers_the_first_is_read_and_goes_to_the_end() -> None:
    code = Code(Arithmetic(), (0.1, 0.6), 3, Noise(7))
    law = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert [code.choose(law, position, Stage.TARGET) for position in (3, 4, 5)] == [0, 1, 0]
    assert [number for number, _ in code._codes[6]] == pytest.approx([0.2, 0.4])
    assert [number for number, _ in code._codes[5]] == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize("start", [0.05, 0.4, 0.8])
def test_what_is_noted_of_an_order_of_tokens_means_the_same_token_in_their_own(start: float) -> None:
    law = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    code = _code(start, shuffle=5)
    code.record = noted = list[Draw]()
    token = code.choose(law * 2, 3, Stage.TARGET)
    order = permutation(5, 3, 4).tolist()
    below = sum(law[other].item() for other in order[: order.index(token)])
    assert below <= start < below + law[token].item()
    assert [(draw.position, draw.stage, draw.index) for draw in noted] == [(3, Stage.TARGET, 0)]
    assert noted[0].number == pytest.approx(law[:token].sum().item() + law[token].item() / 2)
    assert _code(noted[0].number).choose(law, 3, Stage.TARGET) == token
    silent = _code(start, shuffle=5)
    assert silent.choose(law, 3, Stage.TARGET) == token


def test_samples_are_one_number_shifted() -> None:
    first = [Arithmetic().chance(DrawnSample(9, number, 4, [1, 2, 3], 3))._codes[3][0][0] for number in range(4)]
    assert sorted((number - first[0]) % 1.0 for number in first) == pytest.approx([0, 0.25, 0.5, 0.75])
    assert first[0] == Noise(9).uniform(3, Stage.TARGET, ("arithmetic",))
