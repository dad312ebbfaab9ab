"""`top_ids` against `topk`: the same scores in the same order, and only ids that are there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decodery.sampling.top import GROUP, top_ids

WIDTHS = [1, 5, GROUP, 4 * GROUP, 8 * GROUP, 8 * GROUP + 1, 5000, 49152, 50257]


def check(scores: Tensor, k: int) -> None:
    found = top_ids(scores, k)
    k = min(k, scores.shape[1])
    assert found.shape == (scores.shape[0], k)
    assert int(found.min()) >= 0
    assert int(found.max()) < scores.shape[1]
    assert all(len(set(row)) == k for row in found.tolist())
    # Which of equal scores is named is arbitrary; their values are not.
    assert torch.equal(scores.gather(1, found), scores.topk(k, dim=-1).values)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("k", [1, 2, 8, 40])
@pytest.mark.parametrize("kind", ["normal", "bfloat16", "rounded", "constant"])
def test_top_ids_are_those_of_topk(width: int, k: int, kind: str) -> None:
    scores = torch.randn(3, width)
    if kind == "bfloat16":
        scores = scores.bfloat16().float()
    elif kind == "rounded":
        scores = scores.round()
    elif kind == "constant":
        scores = torch.zeros(3, width)
    before = scores.clone()
    check(scores, k)
    assert torch.equal(scores, before)


@pytest.mark.parametrize("width", [8 * GROUP, 8 * GROUP + 1, 50257])
@pytest.mark.parametrize("finite", [0, 1, 3])
def test_rows_of_mostly_impossible_tokens(width: int, finite: int) -> None:
    """A grammar leaves few tokens possible; the rest are at minus infinity, and still ids of the vocabulary."""
    scores = torch.full((2, width), float("-inf"))
    for place in range(finite):
        scores[:, width - 1 - 7 * place] = float(place)
    check(scores, 2)
    check(scores, 8)


@given(st.integers(0, 10_000), st.integers(4 * GROUP, 12 * GROUP), st.integers(1, 3))
def test_any_width(seed: int, width: int, k: int) -> None:
    scores = torch.randn(2, width, generator=torch.Generator().manual_seed(seed)).bfloat16().float()
    check(scores, k)


def test_rows_that_do_not_lie_side_by_side() -> None:
    wide = torch.randn(4, 2 * 8 * GROUP)
    check(wide[:, : 8 * GROUP], 2)
    check(wide[::2, ::2], 2)
    check(torch.randn(8 * GROUP, 3).T, 2)
