"""Any-subset speculative decoding is exact: every branch of its draws on a tiny network, against the joint density."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from iterations import HOLE, Iterations

from decodery.engine.registry import method as as_method
from decodery.testing import total_variation, toy_any_order_model

ROUNDING = 1e-5
TEXTS = ((0, 1, HOLE, HOLE, HOLE, HOLE), (HOLE, 2, HOLE, HOLE, 3, HOLE))
"""Two prompts of a window of six, with four positions free."""


@cache
def _iterations(text: tuple[int, ...]) -> Iterations:
    lm = toy_any_order_model(
        vocabulary=5, canvas=6, layers=2, hidden=16, sharpness=0.25, dtype=torch.float64
    )  # four tokens and the mask
    return Iterations(lm, text)


@pytest.mark.parametrize("text", TEXTS)
def test_positions_depend_on_each_other(text):
    """Otherwise exactness would be easy."""
    found = _iterations(text)
    assert total_variation(found.joint(), found.joint(joint=False)) >= 0.1


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_law_is_the_joint_law(k, text):
    found = _iterations(text)
    assert total_variation(found.law(as_method(f"any-subset-speculative(k={k})")), found.joint()) < ROUNDING


@pytest.mark.parametrize("text", TEXTS)
def test_plain_decoding_has_the_joint_law(text):
    found = _iterations(text)
    assert total_variation(found.law(as_method("any-subset-autoregressive")), found.joint()) < ROUNDING


def test_drafts_of_neighbours_have_the_joint_law():
    """From the second token on the left neighbour may be of the same draft; the first position needs the model's own draft."""
    found = _iterations(TEXTS[1])
    law = found.law(as_method("any-subset-speculative(k=3, draft=ngram)"))
    assert total_variation(law, found.joint()) < ROUNDING


@pytest.mark.parametrize("text", TEXTS)
def test_independent_sampling_does_not(text):
    """Without a verdict all positions are drawn as if they did not see each other."""
    found = _iterations(text)
    law = found.law(as_method("any-subset-speculative(k=4, r_atol=1)"))
    assert total_variation(law, found.joint()) >= 0.1
    assert total_variation(law, found.joint(joint=False)) < ROUNDING


def test_filters_act_on_draft_and_verdict_alike():
    text = TEXTS[1]
    hot = Iterations(_iterations(text).lm, text, temperature=1.7, top_k=3, logit_bias={1: -0.5})
    plain = hot.law(as_method("any-subset-autoregressive"))
    assert total_variation(plain, _iterations(text).joint()) > 0.05
    for spec in ("any-subset-speculative(k=3)", "any-subset-speculative(k=2, draft=ngram)"):
        assert total_variation(hot.law(as_method(spec)), plain) < ROUNDING
