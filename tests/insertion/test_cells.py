"""The law of the next insertion: one softmax over gaps and tokens, in one draw or in two."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from decodery.engine.settings import Settings
from decodery.errors import ScoresNotNumbers
from decodery.insertion.cells import GapCells
from decodery.sampling.law import Law
from decodery.sampling.noise import Noise

GAPS, VOCABULARY = 4, 5


def _scores(seed: int = 0) -> torch.Tensor:
    return torch.randn(GAPS, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def _cells(scores: torch.Tensor, number: int = 0, **settings) -> GapCells:
    return GapCells(scores, Law(Settings(**{"temperature": 1.0, **settings}), ()), number)


def _odds(law: torch.Tensor, gap: int) -> float:
    share = float(law.exp()[gap])
    return share / (1 - share)


def test_a_constant_on_a_gap_multiplies_its_odds_and_leaves_its_tokens_alone():
    scores, raised = _scores(), _scores()
    raised[2] += 1.5
    one, other = _cells(scores), _cells(raised)
    assert _odds(other.gaps(), 2) == pytest.approx(_odds(one.gaps(), 2) * math.exp(1.5), rel=1e-5)
    assert torch.allclose(one.tokens(2), other.tokens(2), atol=1e-6)
    # A softmax of each gap by itself would not notice.
    assert torch.allclose(scores.log_softmax(-1), raised.log_softmax(-1), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_two_stages_without_truncation_have_the_joint_law(temperature):
    cells = _cells(_scores(), temperature=temperature)
    joint = cells.joint().view(GAPS, VOCABULARY).exp()
    staged = torch.stack([cells.gaps()[gap].exp() * cells.tokens(gap).exp() for gap in range(GAPS)])
    assert float((joint - staged).abs().max()) < 1e-6
    assert float((joint - (_scores().double() / temperature).flatten().softmax(0).view_as(joint)).abs().max()) < 1e-6


def test_truncation_is_of_the_whole_table_in_one_draw_and_of_the_gap_s_tokens_in_two():
    cells = _cells(_scores(), top_k=3)
    assert int(cells.joint().isfinite().sum()) == 3
    best = _scores().flatten().topk(3).indices
    assert sorted(cells.joint().isfinite().nonzero().flatten().tolist()) == sorted(best.tolist())
    assert [int(cells.tokens(gap).isfinite().sum()) for gap in range(GAPS)] == [3] * GAPS
    assert torch.allclose(cells.gaps(), _cells(_scores()).gaps())


def test_steps_that_look_at_tokens_hold_in_every_gap():
    cells = _cells(_scores(), logit_bias={1: -float("inf"), 3: 0.7})
    assert torch.isinf(cells.scores[:, 1]).all()
    assert torch.allclose(cells.scores[:, 3], _scores()[:, 3] + 0.7)
    expected = cells.scores.double().logsumexp(-1).log_softmax(-1)
    assert torch.allclose(cells.gaps(), expected)


def test_greedy_choices_are_the_first_of_the_highest():
    scores = torch.zeros(GAPS, VOCABULARY)
    scores[1, 3] = scores[1, 4] = scores[2, 0] = 2.0
    cells = _cells(scores, temperature=0.0)
    assert cells.joint_choice(Noise(0), 0) == (1, 3)
    assert cells.staged_choice(Noise(0), 0, 3) == (1, 3)
    # The gap with the most mass need not have the highest cell.
    scores[3] = 1.5
    cells = _cells(scores, temperature=0.0)
    assert cells.joint_choice(Noise(0), 0) == (1, 3)
    assert cells.staged_choice(Noise(0), 0, 3) == (3, 0)


def test_the_gap_is_drawn_among_the_likeliest():
    cells = _cells(_scores())
    ranked = cells.gaps().sort(descending=True).indices.tolist()
    for most in (1, 2):
        seen = Counter(cells.staged_choice(Noise(seed), 0, most)[0] for seed in range(400))
        assert set(seen) == set(ranked[:most])
    shares = cells.gaps()[ranked[:2]].softmax(0)
    assert seen[ranked[0]] / 400 == pytest.approx(float(shares[0]), abs=0.1)


def test_draws_have_the_joint_law_and_depend_on_the_position():
    cells = _cells(_scores())
    drawn = Counter(cells.joint_choice(Noise(1), position) for position in range(4000))
    joint = cells.joint().exp().view(GAPS, VOCABULARY)
    for (gap, token), count in drawn.items():
        share = float(joint[gap, token])
        assert abs(count / 4000 - share) < 5 * math.sqrt(share * (1 - share) / 4000) + 1e-3


def test_the_least_length_is_not_a_matter_of_tokens():
    settings = Settings(temperature=1.0, min_new_tokens=5)
    law = Law(settings, (), [2])
    assert torch.equal(GapCells(_scores(), law, 0).scores, _scores())


def test_scores_that_are_no_numbers_or_forbid_all_are_told():
    scores = _scores()
    scores[1, 1] = float("nan")
    with pytest.raises(ScoresNotNumbers):
        _cells(scores)
    with pytest.raises(ScoresNotNumbers, match="insertion 4"):
        _cells(torch.full((GAPS, VOCABULARY), -float("inf")), number=3)
