"""Classifier-free guidance by hand on rows, and which prompt it leads away from."""

from __future__ import annotations

import math

import pytest
import torch

from decodery.targets.guidance import Guidance
from decodery.testing import scripted_language_model, story_scorer


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5, 4.0])
def test_it_is_what_its_definition_says(scale: float) -> None:
    mine, away = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(1))
    found = Guidance(scale=scale).combine([mine, away])
    ours, other = mine.log_softmax(-1), away.log_softmax(-1)
    assert torch.allclose(found, other + scale * (ours - other), atol=1e-5)


def test_what_the_prompt_forbids_stays_forbidden() -> None:
    """Also where the other prompt forbids it too: there is no difference of two infinities."""
    rows = [torch.tensor([[0.0, -math.inf, -math.inf]]), torch.tensor([[0.0, 2.0, -math.inf]])]
    assert Guidance().combine(rows)[0].tolist()[1:] == [-math.inf, -math.inf]


def test_the_prompt_that_it_leads_away_from() -> None:
    lm = scripted_language_model(story_scorer())
    for spec, prompt in (({}, (7,)), ({"negative": "bad"}, tuple(lm.encode("bad")))):
        [member] = Guidance(**spec).members(lm, [3, 5, 7])  # type: ignore[arg-type]
        assert (member.network, member.prompt) == (lm.network, prompt)
