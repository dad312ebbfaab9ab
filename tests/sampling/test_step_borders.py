"""Steps of the law at their borders: texts as long as a word, laws of few or equal tokens, and breakers that overlap."""

from __future__ import annotations

import math

import pytest
import torch
from law_cases import FORBIDDEN, kept, law_of

from decodery.sampling.prefix import Prefix
from decodery.sampling.repetition import repetitions
from decodery.sampling.steps.dry import _since_breaker
from decodery.sampling.steps.mirostat import _likeliest
from decodery.sampling.steps.momentum_decoding import MomentumDecoding


def test_a_word_is_forbidden_at_its_end_also_where_nothing_stands_before_it() -> None:
    assert kept(law_of([2, 2], bad_words=((2, 2, 4),)).scores(torch.zeros(6))) == [0, 1, 2, 3, 5]
    assert kept(law_of([2], bad_words=((2, 2, 4),)).scores(torch.zeros(6))) == list(range(6))


@pytest.mark.parametrize(
    ("breakers", "behind"),
    [
        ({}, 4),
        ({1: [()]}, 2),
        ({1: [(2,)]}, 1),
        ({1: [(), (2,)]}, 1),
        ({1: [(2, 3)]}, 0),
        ({1: [(9,)]}, 4),
        ({1: [(9,)], 5: [()]}, 3),
        ({1: [()], 3: [(7,)]}, 2),
        ({3: [()]}, 0),
    ],
)
def test_the_last_breaker_ends_where_the_longest_that_begins_there_does(
    breakers: dict[int, list[tuple[int, ...]]], behind: int
) -> None:
    assert _since_breaker([5, 1, 2, 3], breakers) == behind


def test_two_tokens_have_a_temperature_by_their_entropy_and_one_has_none() -> None:
    row = torch.tensor([2.0, 1.0, FORBIDDEN])
    law = row[:2].softmax(0).double()
    share = float(torch.special.entr(law).sum()) / math.log(2)
    found = law_of(dynatemp_range=0.5).scores(row)
    assert float(found[0] - found[1]) == pytest.approx(1 / (0.5 + share), rel=1e-5)
    single = torch.tensor([2.0, FORBIDDEN, FORBIDDEN])
    assert torch.equal(law_of(dynatemp_range=0.5).scores(single), single)


@pytest.mark.parametrize(
    ("scores", "z", "left"),
    [([3.0, 2.0, 1.0], 0.5, 3), ([3.0, 2.0, 1.0, 0.0], 0.5, 1), ([0.0] * 10, 0.5, 4), ([0.0] * 10, 0.05, 1),
     ([2.0, 1.0], 0.1, 2), ([1.0], 0.1, 1)],
)  # fmt: skip
def test_the_tail_of_few_or_equal_tokens(scores: list[float], z: float, left: int) -> None:
    """Three have one bend, and the first one is no place to cut. Of equal ones each of the eight bends counts alike."""
    assert kept(law_of(tail_free=z).scores(torch.tensor(scores))) == list(range(left))


def test_what_is_forbidden_is_no_top_choice() -> None:
    row = torch.tensor([0.5, 0.3, 0.2, 0.0]).log()
    assert kept(law_of(xtc_probability=1.0, xtc_threshold=0.0).scores(row)) == [2]


@pytest.mark.parametrize(("allowed", "count"), [(2.0, 1), (3.0, 8), (9.0, 8)])
def test_a_flat_law_is_kept_whole_or_not_at_all(allowed: float, count: int) -> None:
    """Eight equal tokens have a surprise of three bits each, by the estimate a little less."""
    assert _likeliest(torch.zeros(8), allowed) == count


@pytest.mark.parametrize("exponent", [0.5, 0.9, 1.0, 1.7])
@pytest.mark.parametrize("allowed", [1.0, 2.0, 3.0, 4.0])
def test_of_a_power_law_as_many_are_kept_as_the_formula_says(exponent: float, allowed: float) -> None:
    """Basu et al., equation 30, with the limit of its factor where the exponent is one."""
    row = -exponent * torch.arange(1, 33, dtype=torch.float64).log()
    excess = exponent - 1
    factor = 1 / math.log(32) if excess == 0 else excess / (1 - 32**-excess)
    expected = min((factor * 2**allowed) ** (1 / exponent), 32.0)
    assert abs(expected - round(expected)) > 1e-6 or expected == 32
    assert _likeliest(row, allowed) == max(1, int(expected + 1e-9))


def test_a_processor_that_forces_one_of_several_stop_tokens_waits_too() -> None:
    def forces(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, FORBIDDEN)
        forced[:, 4] = 0.0
        return forced

    row = torch.arange(6.0)
    law = law_of([9, 9], [3, 4], processors=(forces,), min_new_tokens=3)
    assert kept(law.scores(row)) == [0, 1, 2, 5]


@pytest.mark.parametrize("longest", [1, 2, 3, 9])
def test_a_repetition_counts_up_to_the_longest(longest: int) -> None:
    text = [1, 2, 3, 4, 7, 1, 2, 3]
    law = law_of(text, momentum_alpha=0.2, momentum_longest=longest)
    [step] = law.steps
    assert isinstance(step, MomentumDecoding)
    prefix: Prefix = law.prefix()
    assert step.lengths(prefix)[4] == min(longest, 4)
    assert step.lengths(prefix)[7] == 1
    assert repetitions(text, 9) == {4: 3}
