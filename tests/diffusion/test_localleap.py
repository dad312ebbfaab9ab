"""LocalLeap: what it commits next to an anchor, and when it is threshold decoding."""

from __future__ import annotations

import pytest
import torch
from canvas_outcomes import PROMPT, assert_alone_as_in_a_batch, assert_check_decides_the_claims, decoded

from decodery.diffusion.laws import Laws
from decodery.diffusion.localleap import LocalThreshold
from decodery.diffusion.unmasking.base import CanvasStep
from decodery.diffusion.unmasking.fast_dllm import Threshold
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter
from decodery.sampling.law import Law, LawSettings
from decodery.sampling.noise import Noise
from decodery.testing import (
    ScriptedDenoiser,
    TabularDenoiser,
    confident,
    denoising_language_model,
    exact_outputs,
    total_variation,
    toy_diffusion_model,
)

VECTOR = [0.95, 0.8, 0.6, 0.8, 0.8, 0.8, 0.8]


def _laws(confidences, offsets=None):
    scores = confident(len(confidences), 5, confidences).float()
    return Laws(offsets or range(len(confidences)), scores, Law(LawSettings(temperature=0.0), [0]), Noise(0), 1)


def _step(count):
    return CanvasStep(0, 0, count, count, 0, count, count)


def _scripted(block_length, **parameters):
    lm = denoising_language_model(ScriptedDenoiser(7, 5, lambda canvas: confident(7, 5, VECTOR)))
    written = "".join(f", {name}={value}" for name, value in parameters.items())
    return lm.generate([0], f"localleap(block_length={block_length}{written})").stats.step_of


@pytest.mark.parametrize(
    "same", ["relaxed_threshold=0.6, threshold=0.6", "radius=0, threshold=0.6, relaxed_threshold=0.2"]
)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_without_a_neighbourhood_or_a_relaxed_threshold_it_is_threshold_decoding(same, cache):
    lm, other = toy_diffusion_model(), 0
    for start in range(6):
        prompt = [*PROMPT, start]
        static = lm.generate(prompt, f"masked-diffusion(rule=threshold, threshold=0.6, block_length=6, cache={cache})")
        found = lm.generate(prompt, f"localleap({same}, block_length=6, cache={cache})")
        assert decoded(found) == decoded(static)
        loose = lm.generate(prompt, f"localleap(threshold=0.6, relaxed_threshold=0.1, block_length=6, cache={cache})")
        other += decoded(loose) != decoded(static)
    assert other > 0  # the parameters matter where they differ


@pytest.mark.parametrize("relaxed", [0.0, 0.3, 1.01])
def test_without_anchors_one_token_per_step_whatever_is_relaxed(relaxed):
    lm = toy_diffusion_model()
    static = lm.generate(PROMPT, "masked-diffusion(block_length=6)")
    found = lm.generate(PROMPT, f"localleap(threshold=1.01, relaxed_threshold={relaxed}, block_length=6)")
    assert decoded(found) == decoded(static)
    assert sorted(found.stats.step_of) == list(range(12))


@pytest.mark.parametrize(("radius", "expected"), [(0, (0,)), (2, (0, 1)), (4, (0, 1, 3, 4)), (16, (0, 1, 3, 4, 5, 6))])
def test_what_is_near_an_anchor_needs_less(radius, expected):
    assert LocalThreshold(radius=radius).choose(_laws(VECTOR), _step(7)).offsets == expected


def test_the_same_through_the_engine_and_never_beyond_the_block():
    assert [place for place, step in enumerate(_scripted(7, radius=2)) if step == 0] == [0, 1]
    assert [place for place, step in enumerate(_scripted(1, radius=4)) if step == 0] == [0]
    assert _scripted(1, radius=4)[1] == 1


def test_what_the_relaxed_threshold_admits_is_no_anchor():
    rule = LocalThreshold(radius=1)
    assert rule.choose(_laws([0.95, 0.8, 0.8, 0.8]), _step(4)).offsets == (0, 1)


def test_filled_positions_use_up_the_radius():
    """Offsets 0 and 4 with filled ones in between are four apart, not one."""
    laws = _laws([0.95, 0.8, 0.8], offsets=[0, 4, 5])
    assert LocalThreshold(radius=4).choose(laws, _step(6)).offsets == (0, 4)
    assert LocalThreshold(radius=3).choose(laws, _step(6)).offsets == (0,)


def test_earlier_commits_are_no_anchors():
    """Only what passes in this step counts: a step without anchors commits the surest offset alone."""
    script = {True: VECTOR, False: [0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]}
    lm = denoising_language_model(
        ScriptedDenoiser(7, 5, lambda canvas: confident(7, 5, script[all(token < 0 for token in canvas)]))
    )
    steps = lm.generate([0], "localleap(block_length=7, radius=2)").stats.step_of
    assert steps == [0, 0, 1, 2, 3, 4, 5]


def test_the_first_step_contains_the_threshold_s():
    generator = torch.Generator().manual_seed(1)
    larger = 0
    for trial in range(200):
        laws = _laws((0.4 + 0.6 * torch.rand(12, generator=generator, dtype=torch.float64)).tolist())
        strict = set(Threshold(threshold=0.9).choose(laws, _step(12)).offsets)
        found = set(LocalThreshold(radius=trial % 5).choose(laws, _step(12)).offsets)
        loose = set(Threshold(threshold=0.75).choose(laws, _step(12)).offsets)
        assert strict <= found <= loose
        larger += len(found) > len(strict)
    assert larger > 50


def test_forwards_lie_between_those_of_the_two_thresholds():
    lm = toy_diffusion_model(layers=1)

    def forwards(spec):
        prompts = [[first, second, 7] for first in range(5) for second in range(6)]
        return sum(reply.stats.forwards for reply in lm.generate(prompts, f"{spec}, block_length=12)"))

    strict = forwards("masked-diffusion(rule=threshold, threshold=0.8")
    loose = forwards("masked-diffusion(rule=threshold, threshold=0.4")
    between = forwards("localleap(threshold=0.8, relaxed_threshold=0.4, radius=2")
    assert loose < between < strict


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_alone_and_in_a_batch(temperature):
    spec = "localleap(threshold=0.7, relaxed_threshold=0.4, radius=2, block_length=6)"
    assert_alone_as_in_a_batch(spec, temperature)


def test_no_forward_after_the_last_mask():
    lm = toy_diffusion_model()
    for block in (3, 5, 12):
        reply = lm.generate(PROMPT, f"localleap(threshold=0.6, relaxed_threshold=0.3, block_length={block})")
        assert reply.stats.forwards == len(set(reply.stats.step_of)) == max(reply.stats.step_of) + 1


def test_the_order_of_the_thresholds_is_checked():
    with pytest.raises(BadParameter, match="above the threshold"):
        as_method("localleap(threshold=0.5)")


@pytest.mark.parametrize(
    "spec",
    ["localleap", "localleap(radius=2, cache=dual, block_length=4)"],
)
def test_check_decides_its_claims(spec):
    assert_check_decides_the_claims(spec)


def test_positions_chosen_by_their_law_alone_keep_one_by_one_sampling_exact():
    """Without anchors one position is filled in each step: which one depends on the token drawn for it, or it does not."""
    oracle = TabularDenoiser.random(seed=5)
    lm = denoising_language_model(oracle)
    apart = {}
    for free in (False, True):
        spec = f"localleap(threshold=1.01, relaxed_threshold=1.01, value_independent={free}, block_length=3)"
        law = exact_outputs(lm, spec, [0, 1], Settings(temperature=1.0, max_new_tokens=3, seed=0))
        apart[free] = total_variation(law, oracle.law())
    assert apart[True] < 1e-6
    assert apart[False] > 1e-3
