"""Where a decoder of canvases stands: steps of blocks, blocks that are passed over, and rules that fill nothing."""

from __future__ import annotations

import pytest
import torch

from decodery.diffusion.blocks import BlockSchedule, FixedBlocks
from decodery.diffusion.canvas import Canvas
from decodery.diffusion.laws import Laws
from decodery.diffusion.state import CanvasState, Plan
from decodery.diffusion.unmasking.base import Commit, Rule
from decodery.models.masked_diffusion import MaskedDiffusion
from decodery.sampling.law import Law, LawSettings
from decodery.sampling.noise import Noise


class Waiting(Rule):
    """Fills the first offset that it sees, at the steps of a block that are named, and nothing at others."""

    def __init__(self, *steps):
        self.steps, self.told = steps, []

    def choose(self, laws, step):
        self.told.append(step)
        return Commit((laws.offsets[0],), (0,)) if step.in_block in self.steps else Commit()


def _state(rule=None, length=8, steps=8, block=4, blocks=None):
    plan = Plan(rule or Waiting(), length, steps, blocks or FixedBlocks(block))
    return CanvasState(plan, Canvas([0, 0], length, MaskedDiffusion(5)))


def _laws(state):
    offsets = state.canvas.masked()
    law = Law(LawSettings(temperature=0.0), [0])
    return Laws(offsets, torch.zeros(len(offsets), 5), law, Noise(0), 2)


@pytest.mark.parametrize(("length", "steps"), [(0, 1), (1, 0), (-1, 3)])
def test_a_plan_has_a_position_and_a_step(length, steps):
    with pytest.raises(ValueError, match=f"not {length} and {steps}"):
        Plan(Waiting(), length, steps, FixedBlocks(1))
    assert Plan(Waiting(), 1, 1, FixedBlocks(1)).planned(0, 1) == 1


def test_a_block_gets_its_share_of_the_steps_wherever_it_stands():
    plan = Plan(Waiting(), 12, 6, FixedBlocks(4))
    assert [plan.planned(start, start + 4) for start in (0, 4, 8)] == [2, 2, 2]
    assert [plan.planned(*block) for block in ((0, 12), (2, 9), (11, 12))] == [6, 3, 1]


def test_a_step_says_where_the_decoding_stands():
    state = _state(rule := Waiting(0, 1), length=6, steps=12, block=3)
    state.canvas.fill([4], [1], 0)
    state.open_block()
    for _ in range(2):
        state.take(state.choose(_laws(state)))
    assert [(s.number, s.in_block, s.planned, s.masks, s.start, s.end, s.total) for s in rule.told] == [
        (0, 0, 6, 3, 0, 3, 12),
        (1, 1, 6, 3, 0, 3, 12),
    ]
    state.canvas.fill([2], [1], 1)
    assert state.block_filled
    state.open_block()
    state.choose(_laws(state))
    last = rule.told[-1]
    assert (last.number, last.in_block, last.masks, last.start, last.end) == (2, 0, 2, 3, 6)


def test_blocks_that_are_filled_already_are_passed_over():
    state = _state(length=8, block=2)
    state.canvas.fill([0, 1, 2, 3, 5], [1] * 5, 0)
    state.open_block()
    assert (state.start, state.end, state.masks) == (4, 6, 1)


@pytest.mark.parametrize("end", [-1, 0, 9])
def test_a_block_that_cannot_be_is_an_error(end):
    class Wrong(BlockSchedule):
        def end(self, canvas, start, laws):
            return end

    with pytest.raises(ValueError, match=f"begins at 0 of 8 cannot end at {end}"):
        _state(blocks=Wrong()).open_block()


def test_a_rule_may_fill_nothing_for_as_many_steps_as_its_block_has_and_one():
    """Grids of times may leave every step of a block empty but the one behind them."""
    for planned in (1, 4):
        for filled_before in (False, True):
            state = _state(Waiting(0) if filled_before else Waiting(), steps=2 * planned)
            state.open_block()
            if filled_before:  # what was filled starts the count anew
                state.take(state.choose(_laws(state)))
            for _ in range(planned + 1):
                state.take(state.choose(_laws(state)))
            with pytest.raises(RuntimeError, match="Waiting fills nothing"):
                state.take(state.choose(_laws(state)))


def test_idle_steps_of_the_block_before_do_not_count():
    state = _state(Waiting(), steps=8)
    state.open_block()
    for _ in range(5):
        state.take(Commit())
    state.canvas.fill(range(4), [1] * 4, 5)
    state.open_block()
    for _ in range(5):
        state.take(Commit())
    with pytest.raises(RuntimeError):
        state.take(Commit())


def test_to_advance_is_to_take_steps_until_one_fills_something():
    state = _state(rule := Waiting(3))
    state.open_block()
    commit = state.advance(_laws(state))
    assert commit.filled == {0: 0}
    assert (state.number, state.in_block, len(rule.told)) == (4, 4, 4)
    assert state.canvas.step_of[0] == 3


def test_a_copy_goes_its_own_way():
    state = _state(Waiting(0))
    state.open_block()
    copy = state.copy()
    copy.take(copy.choose(_laws(copy)))
    assert (copy.number, copy.canvas.masked()) == (1, list(range(1, 8)))
    assert (state.number, state.canvas.masked()) == (0, list(range(8)))
