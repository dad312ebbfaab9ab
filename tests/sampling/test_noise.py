"""Noise with addresses: the same address the same draw, and draws of different addresses independent and of the right law.

The statistical tests are deterministic (the seeds are fixed) and were chosen before looking: each fails for a right
generator with probability 1e-4 at most; where several are made, 1e-4 is shared among them.
"""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from decodery.sampling import Noise, Stage
from decodery.sampling.noise import BLOCK, inverse

LARGEST = 1 - 2.0**-53
FALSE_ALARM = 1e-4
addresses = st.tuples(st.integers(0, 10**9), st.sampled_from(list(Stage)), st.integers(0, 10**6))
seeds = st.integers(-(2**63), 2**64 - 1)


@given(seeds, st.integers(0, 1000), addresses)
def test_the_same_address_gives_the_same_draw(seed: int, request: int, address: tuple[int, Stage, int]) -> None:
    one, other = Noise(seed, request), Noise(seed, request)
    other.uniform(5, Stage.DRAFT)  # what else was drawn, and in which order, is of no consequence
    assert one.uniform(*address) == other.uniform(*address)
    assert torch.equal(one.uniforms(7, *address), other.uniforms(7, *address))
    weights = torch.arange(1.0, 20.0)
    assert one.choose(weights, *address) == other.choose(weights, *address)


def test_draws_are_fixed_for_all_time() -> None:
    """Results named by a seed must be the same in the next version; the values are those of BLAKE2b and Philox."""
    assert Noise(0).uniform(0, Stage.TARGET) == 0.8361774771399882
    assert Noise(-1, 3).uniform(17, Stage.RESIDUAL, 2) == 0.8791225753674442
    assert Noise(5).uniforms(2, 1, Stage.DRAFT).tolist() == [0.6627587663910959, 0.4581575648106221]


def test_different_addresses_give_different_draws() -> None:
    """Every part of an address counts. Among 53 random bits a chance meeting of a few thousand is out of the question."""
    draws = [
        Noise(seed, request).uniform(position, stage, index)
        for seed in (0, 1, 2**40)
        for request in (0, 1, 7)
        for position in (0, 1, 255, 256, 70000)
        for stage in Stage
        for index in (0, 1, 63, 64)
    ]
    assert len(set(draws)) == len(draws)
    many = [tuple(Noise(0).uniforms(3, position, stage, 0).tolist()) for position in range(20) for stage in Stage]
    assert len(set(many)) == len(many)


def test_uniforms_are_uniform() -> None:
    """Kolmogorov-Smirnov along each part of the address, and within one long draw."""
    count = 20_000
    lines = {
        "position": [Noise(1).uniform(i, Stage.TARGET) for i in range(count)],
        "seed": [Noise(i).uniform(3, Stage.ACCEPT) for i in range(count)],
        "request": [Noise(2, i).uniform(3, Stage.RESIDUAL) for i in range(count)],
        "index": [Noise(3).uniform(3, Stage.DRAFT, i) for i in range(count)],
        "within": Noise(4).uniforms(count, 0, Stage.TARGET).tolist(),
    }
    for name, draws in lines.items():
        assert all(0 <= draw < 1 for draw in draws)
        assert scipy.stats.kstest(draws, "uniform").pvalue > FALSE_ALARM / len(lines), name


def test_neighbouring_addresses_are_independent() -> None:
    """Correlation of a draw with the next along each part of the address: within 4.5 standard errors."""
    count = 20_000
    for draws in (
        [Noise(1).uniform(i, Stage.TARGET) for i in range(count)],
        [Noise(i).uniform(3, Stage.TARGET) for i in range(count)],
        [Noise(1).uniform(i // 4, Stage(i % 4)) for i in range(count)],
    ):
        series = torch.tensor(draws, dtype=torch.float64) - 0.5
        correlation = float((series[1:] * series[:-1]).sum() / (series * series).sum())
        assert abs(correlation) < 4.5 / math.sqrt(count)  # two-sided 7e-6 each


def chi_square(counts: list[int], law: list[float]) -> float:
    """p-value of counts under a law; entries of probability 0 must not occur."""
    total = sum(counts)
    assert all(count == 0 for count, chance in zip(counts, law, strict=True) if chance == 0)
    pairs = [(count, chance) for count, chance in zip(counts, law, strict=True) if chance > 0]
    return float(scipy.stats.chisquare([c for c, _ in pairs], [total * p for _, p in pairs]).pvalue)


@pytest.mark.parametrize("scale", [1.0, 3.7, 1e-3])
def test_choose_follows_the_probabilities(scale: float) -> None:
    """Also where they do not sum to one; and entries without mass are never drawn, wherever they stand."""
    law = [0.0, 0.05, 0.0, 0.0, 0.3, 0.15, 0.0, 0.5, 0.0]
    noise, counts = Noise(6), [0] * len(law)
    for position in range(20_000):
        counts[noise.choose(torch.tensor(law) * scale, position, Stage.TARGET)] += 1
    assert chi_square(counts, law) > FALSE_ALARM / 3


class Fixed(Noise):
    """Noise whose every uniform is one number."""

    def __init__(self, number: float):
        super().__init__(0)
        self.number = number

    def uniform(self, position: int, stage: Stage, index: int = 0) -> float:
        return self.number


@given(
    st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1e-7, 0.1, 0.3, 2.0]), min_size=1, max_size=30).filter(any),
    st.sampled_from([0.0, 2.0**-53, 0.1, 0.25, 0.5, 0.75, 1 - 2.0**-53]) | st.floats(0, 1, exclude_max=True),
)
@example([0.0, 1.0], 0.0)
@example([1.0, 0.0], 1 - 2.0**-53)
@example([0.25, 0.0, 0.75], 0.25)
def test_choose_never_takes_an_entry_without_mass(law: list[float], number: float) -> None:
    chosen = Fixed(number).choose(torch.tensor(law, dtype=torch.float64), 0, Stage.TARGET)
    assert law[chosen] > 0


@given(st.floats(0, 1, exclude_max=True))
def test_choose_is_the_inverse_of_the_cumulated_masses(number: float) -> None:
    law = torch.tensor([0.2, 0.0, 0.5, 0.3], dtype=torch.float64)
    expected = 0 if number < 0.2 else 2 if number < 0.7 else 3
    if min(abs(number - border) for border in (0.2, 0.7)) > 1e-12:
        assert Fixed(number).choose(law, 0, Stage.TARGET) == expected


def test_choose_keeps_more_digits_than_float32_has() -> None:
    """A token of probability 1e-9 at the end of a long row is drawn when, and only when, the draw falls on it."""
    law = torch.full((100_000,), 1e-5, dtype=torch.float32)
    law[-1] = 1e-9
    total = float(law.double().sum())
    border = float(law[:-1].double().sum()) / total
    assert Fixed(border + 1e-15).choose(law, 0, Stage.TARGET) == 99_999
    assert Fixed(border - 1e-12).choose(law, 0, Stage.TARGET) == 99_998


def test_accept_never_at_0_and_always_at_1() -> None:
    for number in (0.0, 2.0**-53, 0.5, 1 - 2.0**-53):
        assert not Fixed(number).accept(0.0, 0)
        assert Fixed(number).accept(1.0, 0)
        assert Fixed(number).accept(7.5, 0)
        assert not Fixed(number).accept(-0.5, 0)
    assert not Fixed(0.0).accept(math.nan, 0)


def test_accept_has_the_probability_asked() -> None:
    for probability in (0.003, 0.4, 0.97):
        noise = Noise(8)
        hits = sum(noise.accept(probability, position, 5) for position in range(20_000))
        assert scipy.stats.binomtest(hits, 20_000, probability).pvalue > FALSE_ALARM / 3


def test_accepting_and_drawing_are_independent() -> None:
    """The draw that replaces a refused token must not know that it was refused."""
    noise, law = Noise(9), torch.tensor([0.5, 0.5])
    table = [[0, 0], [0, 0]]
    for position in range(20_000):
        accepted = noise.accept(0.5, position)
        table[accepted][noise.choose(law, position, Stage.RESIDUAL)] += 1
    assert scipy.stats.chi2_contingency(table).pvalue > FALSE_ALARM


@pytest.mark.parametrize("width", [5, BLOCK * BLOCK - 1, BLOCK * BLOCK, 49152, 50257])
@pytest.mark.parametrize("kind", ["many", "few", "one", "ends"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_long_laws_are_drawn_from_as_the_sum_of_all_entries_says(width: int, kind: str, dtype: torch.dtype) -> None:
    masses = torch.rand(width, generator=torch.Generator().manual_seed(width)).to(dtype)
    if kind == "few":
        masses[torch.arange(width) % 40 > 0] = 0
    elif kind == "one":
        masses = torch.zeros(width, dtype=dtype)
        masses[width // 2] = 0.3
    elif kind == "ends":
        masses[: width // 3] = masses[-(width // 3) :] = 0
    sums = masses.double().cumsum(0)
    total = float(sums[-1])
    for number in [0.0, LARGEST, *Noise(3).uniforms(200, 0, Stage.TARGET).tolist()]:
        place, before, share = inverse(masses, number)
        assert share == pytest.approx(float(masses[place]) / total, rel=1e-9)
        assert before == pytest.approx((float(sums[place]) - float(masses[place])) / total, abs=1e-12)
        assert share > 0
        assert before - 1e-12 <= number <= before + share + 1e-12
    assert inverse(masses, 0.0)[0] == int(masses.nonzero()[0])
    assert inverse(masses, LARGEST)[0] == int(masses.nonzero()[-1])
