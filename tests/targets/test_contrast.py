"""Contrastive decoding by hand on rows: the mask by the expert, the weight, and what is forbidden."""

from __future__ import annotations

import math

import pytest
import torch

from decodery.targets.contrast import Contrast

EXPERT = torch.tensor([[2.0, 1.0, -0.5, -math.inf], [0.0, 0.0, 3.0, 1.0]])
AMATEUR = torch.tensor([[1.5, -1.0, 0.5, 4.0], [2.0, -math.log(2), 3.0, -1.0]])


@pytest.mark.parametrize(("beta", "alpha"), [(0.5, 0.1), (2.0, 0.1), (0.0, 0.5), (0.5, 0.0), (1.0, 1.0)])
def test_it_is_what_its_definition_says(beta: float, alpha: float) -> None:
    found = Contrast(amateur="other", beta=beta, alpha=alpha).combine([EXPERT, AMATEUR])
    for row, expert, amateur in zip(found.tolist(), EXPERT.tolist(), AMATEUR.tolist(), strict=True):
        for score, one, other in zip(row, expert, amateur, strict=True):
            held = one > -math.inf and math.exp(one) >= alpha * math.exp(max(expert)) * (1 - 1e-6)
            assert score == (pytest.approx((1 + beta) * one - beta * other) if held else -math.inf)


def test_a_token_with_exactly_the_share_is_held() -> None:
    """At an alpha of 1 the expert's best token, and its equals, are left."""
    rows = torch.tensor([[1.0, 3.0, 3.0]])
    assert Contrast(amateur="other", alpha=1.0).combine([rows, torch.zeros(1, 3)]).isfinite().tolist() == [
        [False, True, True]
    ]
