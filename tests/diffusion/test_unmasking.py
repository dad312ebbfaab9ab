"""Unmasking rules at their borders: shares of time grids, weights of nothing, and confidences that just reach."""

from __future__ import annotations

import math

import pytest
import torch

from decodery.diffusion.laws import Laws
from decodery.diffusion.unmasking.base import CanvasStep, without_replacement
from decodery.diffusion.unmasking.dream import TimeGrid, share
from decodery.diffusion.unmasking.fast_dllm import Factor, Threshold, reaching
from decodery.diffusion.unmasking.llada import Quota
from decodery.diffusion.unmasking.mdlm import Ancestral
from decodery.sampling.law import Law, LawSettings
from decodery.sampling.noise import Noise


def _step(in_block=0, planned=4):
    return CanvasStep(in_block, in_block, planned, 12, 0, 12, planned)


def _laws(seed, count=12):
    return Laws(range(count), torch.zeros(count, 3), Law(LawSettings(temperature=1.0), [0]), Noise(seed), 1)


@pytest.mark.parametrize(("rule", "last_time"), [(Ancestral(), 1e-5), (TimeGrid("origin"), 1e-3)])
def test_each_position_is_freed_at_the_rate_of_its_grid(rule, last_time):
    for in_block in range(3):
        seeds, expected = 200, share(in_block, 4, last_time)
        freed = [offset for seed in range(seeds) for offset in rule.choose(_laws(seed), _step(in_block)).offsets]
        # Four and a half standard deviations of a share of 2400 positions: refuted by chance once in 100 000.
        deviation = (expected * (1 - expected) / (seeds * 12)) ** 0.5
        assert abs(len(freed) / (seeds * 12) - expected) < 4.5 * deviation
        assert set(freed) == set(range(12)), "each position by itself"


def test_what_is_left_at_the_end_of_the_grid_is_freed_whole():
    assert Ancestral().choose(_laws(0), _step(4)).offsets == tuple(range(12))
    assert len(Ancestral().choose(_laws(0), _step(3)).offsets) in range(10, 13)
    assert TimeGrid("origin").choose(_laws(0), _step(3)).offsets == tuple(range(12))


def test_the_share_of_each_step_leaves_an_even_grid():
    left = [1.0]
    for step in range(4):
        left.append(left[-1] * (1 - share(step, 4, 1e-5)))
    assert left == pytest.approx([1.0, 0.7500025, 0.500005, 0.2500075, 1e-5])


def test_places_without_weight_are_taken_in_order_once_the_others_are_gone():
    weights = torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0])
    for seed in range(10):
        for count, expected in ((2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 4])):
            assert without_replacement(Noise(seed), weights, count, _step()) == expected
    assert {tuple(without_replacement(Noise(seed), weights, 1, _step())) for seed in range(30)} == {(1,), (3,)}
    assert weights.tolist() == [0.0, 2.0, 0.0, 1.0, 0.0], "the weights of the caller stay"


def test_a_confidence_that_just_reaches_the_threshold_counts():
    half = torch.tensor([math.log(0.5), math.log(0.49), math.log(0.9)], dtype=torch.float64)
    assert reaching(half, 0.5) == [0, 2]
    assert Threshold(threshold=0.5).sure(half, range(3)) == [0, 2]
    assert reaching(half, 0.0) == [0, 1, 2]


def test_a_number_that_just_reaches_the_factor_does_not_fit():
    """(n + 1) (1 - c) must be below the factor: for two at one half it is 1.5."""
    half = torch.tensor([math.log(0.5)] * 2, dtype=torch.float64)
    assert Factor(factor=1.5).sure(half, range(2)) == [0]
    assert Factor(factor=1.5001).sure(half, range(2)) == [0, 1]


RANKED = {"max_probability": 0, "margin": 1, "entropy": 2}
"""Which of the laws below comes first by each rank."""


@pytest.mark.parametrize(("rank", "first"), RANKED.items())
@pytest.mark.parametrize("deferred", [(), (9,), (0,)])
def test_a_quota_takes_the_highest_of_its_own_rank(rank, first, deferred):
    """The likeliest token of every law is token 0; deferred, it makes all offsets equal, and the first one comes."""
    rows = [[0.6, 0.35, 0.0125, 0.0125, 0.0125, 0.0125], [0.5, 0.125, 0.125, 0.125, 0.0625, 0.0625], [0.52, 0.48]]
    scores = torch.full((3, 10), 1e-12)
    for row, shares in zip(scores, rows, strict=True):
        row[: len(shares)] = torch.tensor(shares)
    laws = Laws([4, 5, 7], scores.log(), Law(LawSettings(temperature=0.0), [0]), Noise(0), 1)
    step = CanvasStep(0, 0, 12, 12, 0, 12, 12)
    commit = Quota(rank, deferred).choose(laws, step)
    assert commit.filled == {4 if deferred == (0,) else [4, 5, 7][first]: 0}
    assert Quota(rank, (), 2).choose(laws, step).tokens == (0, 0)
    assert Quota(rank, (), 9).choose(laws, step).offsets == (4, 5, 7), "no more than there are"
