"""FreeCache: what is frozen stays so, bit by bit; with one layer nothing is lost, at the boundary it is; the window shrinks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
import torch
from canvas_outcomes import acting, assert_claims_hold

from decodery.diffusion.canvas import Canvas
from decodery.diffusion.freecache.cache import FREEZE, FreeCache
from decodery.diffusion.loop import Denoising
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter
from decodery.models.forward import Attend, Forward
from decodery.models.masked_diffusion import MaskedDiffusion
from decodery.testing import (
    ScriptedDenoiser,
    TabularDenoiser,
    confident,
    denoising_language_model,
    exact_outputs,
    total_variation,
    toy_diffusion_model,
    watched,
)
from decodery.testing.outputs import finished, new_request

PROMPT = [3, 1, 4, 1, 5]
SAMPLING = Settings(temperature=1.0, max_new_tokens=64, seed=0)


@dataclass
class Seen:
    """One forward. start: of the block; rows: those computed; off: largest difference from the scores without a cache."""

    start: int
    opening: bool
    rows: int
    frozen: int
    off: float
    keys: list[torch.Tensor] = field(default_factory=list)
    """Keys and values of each layer, as the forward left them."""


class Compared(Denoising):
    """Beside each forward one over everything with a fresh cache."""

    def __init__(self, *given):
        super().__init__(*given)
        self.seen: list[Seen] = []

    def score(self, start, end, offsets=None):
        [sequence] = self.sequences
        before = self.request.statistics.rows
        laws = yield from super().score(start, end, offsets)
        rows = self.request.statistics.rows - before
        total = len(self.canvas.tokens)
        keys = [sequence.cache.both(layer)[:, :, :total].clone() for layer in range(self.request.host.network.layers)]
        scores = yield Forward(
            self.request.new_sequence(), list(self.canvas.tokens), attend=Attend.FULL, slots=range(total)
        )
        fresh = scores.logits[[self.canvas.prompt + offset - self.model.shift for offset in laws.offsets]]
        off = float((laws.scores - fresh)[:, :-1].abs().max())  # the mask's own score is banned
        self.seen.append(Seen(start, end is None, rows, self.plan.cache.frozen, off, keys))
        return laws


def _run(layers, spec, shift=False):
    lm = toy_diffusion_model(layers=layers, shift=shift)
    request, method = new_request(lm, spec, PROMPT, Settings(seed=0))
    run = Compared(request, method.plan(request))

    class Watched(type(method)):
        def decode(self, request):
            yield from run.run()

    finished(request, Watched())
    return run.seen


# What is exact


@pytest.mark.parametrize("rule", ["low_confidence", "threshold"])
@pytest.mark.parametrize("shift", [False, True])
def test_with_one_layer_it_is_exact_at_every_step(rule, shift):
    row = ", shift_row=compute" if shift else ""
    seen = _run(1, acting(f"freecache(block_length=4, rule={rule}, threshold=0.7{row})"), shift)
    assert len(seen) > 3
    assert max(one.off for one in seen) < 1e-4


@pytest.mark.parametrize(
    "spec", ["freecache", "freecache(block_length=4, freeze=at_boundary)", "freecache(cfg_scale=1)"]
)
def test_what_it_says_of_itself_holds(spec):
    assert_claims_hold(toy_diffusion_model(), spec)


def test_freezing_at_the_boundary_keeps_masks():
    """Control: the tokens that a block's last step committed are still masks in what is frozen."""
    seen = _run(1, "freecache(block_length=4, freeze=at_boundary)")
    assert max(one.off for one in seen if one.start == 0) < 1e-4
    assert min(one.off for one in seen if one.start > 0) > 0.01


def test_with_two_layers_the_first_forward_is_exact_and_later_ones_drift():
    seen = _run(2, "freecache(block_length=4)")
    assert seen[0].off < 1e-4
    assert min(one.off for one in seen[1:]) > 1e-3


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_frozen_was_computed_from_tokens(seed):
    """On a denoiser that reads the canvas off the cache the sampler stays exact; frozen masks show in its law."""
    oracle = TabularDenoiser.random(length=3, vocabulary=3, seed=seed)
    lm = denoising_language_model(oracle)
    for block in (1, 2):
        spec = f"freecache(block_length={block}, value_independent=True"
        assert total_variation(exact_outputs(lm, f"{spec})", [0, 1], SAMPLING), oracle.law()) < 1e-6
        wrong = exact_outputs(lm, f"{spec}, freeze=at_boundary)", [0, 1], SAMPLING)
        assert total_variation(wrong, oracle.law()) > 0.05


# What is frozen and what is computed


@pytest.mark.parametrize("freeze", FREEZE)
@pytest.mark.parametrize("shift", [False, True])
def test_frozen_keys_and_values_are_bitwise_constant(freeze, shift):
    """A shifted model's row before the block is computed with it where it is not carried over."""
    for shift_row in ("carry", "compute") if shift else ("carry",):
        seen = _run(3, f"freecache(block_length=4, freeze={freeze}, shift_row={shift_row})", shift)
        spare = 1 if shift_row == "compute" else 0
        changed = 0
        for one, after in itertools.pairwise(seen):
            # At the boundary the row before the block is computed with it once more, and then frozen.
            until = one.frozen - spare
            for now, later in zip(one.keys, after.keys, strict=True):
                assert torch.equal(now[:, :, :until], later[:, :, :until])
                changed += not torch.equal(now[:, :, until:], later[:, :, until:])
        assert changed > 20
        assert seen[0].frozen == len(PROMPT)
        assert seen[-1].frozen == len(PROMPT) + 8


@pytest.mark.parametrize("shift", [False, True])
def test_a_forward_computes_what_is_not_frozen_and_never_more_than_the_last(shift):
    for shift_row in ("carry", "compute") if shift else ("carry",):
        seen = _run(2, f"freecache(block_length=4, shift_row={shift_row})", shift)
        total, spare = len(PROMPT) + 12, 1 if shift_row == "compute" else 0
        frozen = 0
        for place, one in enumerate(seen):
            assert one.rows == total - frozen + (spare if place else 0)
            frozen = one.frozen
        counts = [one.rows for one in seen[1:]]
        assert counts == sorted(counts, reverse=True)
        assert seen[0].rows == total


@pytest.mark.parametrize("freeze", FREEZE)
def test_the_cost_of_a_whole_canvas(freeze):
    stats = toy_diffusion_model().generate(PROMPT, f"freecache(block_length=4, freeze={freeze})").stats
    opened = 4 if freeze == "after_clean_forward" else 0
    assert stats.forwards == 12
    assert stats.rows == (17 + 3 * 12) + (8 + opened + 3 * 8) + (4 + opened + 3 * 4)


def test_the_rows_step_by_step():
    cache = FreeCache()
    canvas = Canvas(PROMPT, 12, MaskedDiffusion(9))
    asked = [(0, None), (0, 4), (4, None), (4, 8), (4, 8), (8, None), (8, 12)]
    assert [cache.rows(canvas, *step).start for step in asked] == [0, 5, 5, 9, 9, 9, 13]
    cache = FreeCache("at_boundary")
    assert [cache.rows(canvas, *step).start for step in asked] == [0, 5, 9, 9, 9, 13, 13]
    shifted = Canvas(PROMPT, 12, MaskedDiffusion(9, shift=True))
    cache = FreeCache("at_boundary")
    assert [cache.rows(shifted, *step).start for step in asked] == [0, 5, 8, 9, 9, 12, 13]


def test_positions_are_absolute_and_every_row_sees_all():
    """Not a causal flag, and not counted from the window on: these would go unnoticed on short prompts."""
    lm = toy_diffusion_model()
    forwards = []
    with watched(lm.network, forwards.append):
        lm.generate(PROMPT, "freecache(block_length=4)")
    for forward in forwards:
        assert forward.attend is Attend.FULL
        assert list(forward.row_positions()) == list(range(17 - forward.count, 17))


# End tokens behind the text


def _ends_filled_first():
    """A denoiser that is sure of the end tokens in the last four of eight positions before it knows the others."""
    tokens = [0, 1, 0, 1, 2, 2, 2, 2]
    confidences = [0.5, 0.52, 0.54, 0.56, 0.9, 0.91, 0.92, 0.93]
    return denoising_language_model(
        ScriptedDenoiser(8, 4, lambda canvas: confident(8, 4, confidences, tokens)), stop_ids=(2,)
    )


def test_end_tokens_at_the_end_leave_the_window():
    lm = _ends_filled_first()
    settings = {"ignore_eos": True}
    whole = lm.generate([0, 1], "freecache(block_length=8, early_stop=never)", **settings)
    shrunk = lm.generate([0, 1], "freecache(block_length=8, early_stop=never, shrink=True)", **settings)
    assert shrunk.token_ids == whole.token_ids == [0, 1, 0, 1, 2, 2, 2, 2]
    assert shrunk.stats.step_of == whole.stats.step_of
    rows, all_rows = [], []
    for kept, spec in ((rows, "shrink=True"), (all_rows, "shrink=False")):
        with watched(lm.network, lambda forward, kept=kept: kept.append(forward.count)):
            lm.generate([0, 1], f"freecache(block_length=8, early_stop=never, {spec})", **settings)
    assert all_rows == [10, *[8] * 7]
    # A position leaves after one forward that has seen its token.
    assert rows == [10, 8, 7, 6, 5, 4, 4, 4]


# As a parameter


@pytest.mark.parametrize("freeze", FREEZE)
@pytest.mark.parametrize("cfg_scale", [0.0, 0.5])
def test_it_is_a_cache_of_the_base_decoders(freeze, cfg_scale):
    lm = toy_diffusion_model()
    given = f"block_length=4, rule=threshold, threshold=0.4, freeze={freeze}, cfg_scale={cfg_scale}"
    ours = lm.generate(PROMPT, f"freecache({given})")
    base = lm.generate(PROMPT, f"masked-diffusion({given}, cache=freecache)")
    assert ours.token_ids == base.token_ids
    assert (ours.stats.step_of, ours.stats.rows) == (base.stats.step_of, base.stats.rows)


@pytest.mark.parametrize("given", ["freeze=at_boundary", "shrink=True", "cache=prefix, shrink=True"])
def test_its_parameters_go_with_it_alone(given):
    with pytest.raises(BadParameter, match="only with cache=freecache"):
        toy_diffusion_model().generate(PROMPT, f"masked-diffusion({given})")


def test_another_cache_is_another_method():
    with pytest.raises(BadParameter, match="must be one of freecache"):
        as_method("freecache(cache=dual)")
