"""dParallel's decoding: which tokens a step fills, and its limits."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from canvas_outcomes import PROMPT, assert_alone_as_in_a_batch, assert_check_decides_the_claims, decoded

from decodery.diffusion.dparallel import EntropyThreshold
from decodery.diffusion.laws import Laws
from decodery.diffusion.unmasking.base import CanvasStep
from decodery.engine.registry import method as as_method
from decodery.sampling.law import Law, LawSettings
from decodery.sampling.noise import Noise
from decodery.testing import confident, toy_diffusion_model


def _laws(confidences, temperature=0.0):
    scores = confident(len(confidences), 5, confidences).float()
    return Laws(range(len(confidences)), scores, Law(LawSettings(temperature=temperature), [0]), Noise(0), 1)


def _chosen(confidences, threshold, temperature=0.0):
    count = len(confidences)
    step = CanvasStep(0, 0, count, count, 0, count, count)
    return EntropyThreshold(threshold).choose(_laws(confidences, temperature), step)


def _entropy(confidence):
    rest = (1 - confidence) / 4
    return -confidence * math.log(confidence) - 4 * rest * math.log(rest)


VECTOR = [0.9, 0.99, 0.6, 0.95]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (-1.0, (1,)),
        (0.0, (1,)),
        (_entropy(0.99) + 1e-6, (1,)),
        (_entropy(0.95) + 1e-6, (1, 3)),
        (_entropy(0.9) + 1e-6, (0, 1, 3)),
        (_entropy(0.9) - 1e-6, (1, 3)),
        (math.log(5), (0, 1, 2, 3)),
    ],
)
def test_a_step_fills_what_has_little_entropy_and_always_the_surest(threshold, expected):
    assert _chosen(VECTOR, threshold).offsets == expected


def test_the_entropy_is_that_of_the_model_s_own_law():
    """A temperature changes what is drawn and not what is filled."""
    threshold = _entropy(0.95) + 1e-6
    for temperature in (0.0, 0.3, 3.0):
        assert _chosen(VECTOR, threshold, temperature).offsets == (1, 3)


def test_an_entropy_at_the_threshold_is_enough_and_equals_go_to_the_lowest_position():
    laws = _laws([0.5, 0.5])
    reached = float(-laws.rank("entropy")[0])
    step = CanvasStep(0, 0, 2, 2, 0, 2, 2)
    assert EntropyThreshold(reached).choose(laws, step).offsets == (0, 1)
    assert EntropyThreshold(reached - 1e-9).choose(laws, step).offsets == (0,)


def test_its_limits_are_one_token_a_step_and_the_whole_block():
    lm = toy_diffusion_model()
    for seed in range(4):
        one = lm.generate([*PROMPT, seed], "dparallel(threshold=-1, block_length=6)", temperature=1.0, seed=seed)
        spec = "masked-diffusion(value_independent=True, block_length=6)"
        assert decoded(one) == decoded(lm.generate([*PROMPT, seed], spec, temperature=1.0, seed=seed))
        whole = lm.generate([*PROMPT, seed], f"dparallel(threshold={math.log(24)}, block_length=6)")
        assert list(Counter(whole.stats.step_of).values()) == [6, 6]


def test_a_higher_threshold_takes_no_more_forwards():
    lm = toy_diffusion_model(layers=1)
    forwards = []
    for threshold in (-1.0, 0.05, 0.2, 0.5, 1.0, 3.2):
        replies = lm.generate([[*PROMPT, place] for place in range(8)], f"dparallel(threshold={threshold})")
        forwards.append(sum(reply.stats.forwards for reply in replies))
    assert forwards == sorted(forwards, reverse=True)
    assert len(set(forwards)) >= 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_alone_and_in_a_batch(temperature):
    assert_alone_as_in_a_batch("dparallel(threshold=2.0, block_length=6)", temperature)


def test_check_decides_its_claims():
    assert_check_decides_the_claims("dparallel")
    guided = as_method("dparallel(cfg_scale=0.5, cache=dual, block_length=4)")
    # Guidance and stale rows change the law, so exactness is claimed without them.
    assert guided.claims()[2].method == as_method("dparallel(threshold=-1, block_length=4)")


def test_a_law_of_minus_infinities_has_an_entropy():
    scores = torch.full((1, 4), -torch.inf)
    scores[0, 2] = 0.0
    laws = Laws([0], scores, Law(LawSettings(temperature=0.0), [0]), Noise(0), 1)
    commit = EntropyThreshold(0.0).choose(laws, CanvasStep(0, 0, 1, 1, 0, 1, 1))
    assert (commit.offsets, commit.tokens) == ((0,), (2,))
