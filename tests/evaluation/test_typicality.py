"""Typicality of a text, by hand."""

from __future__ import annotations

import pytest
import torch

from decodery.evaluation.typicality import Typicality, typicality
from decodery.testing import TabularScorer, scripted_language_model


def test_by_hand() -> None:
    scorer = TabularScorer(6, order=2, seed=1)
    lm = scripted_language_model(scorer)
    prompt, tokens = [0, 3], [1, 2, 5, 4] * 40
    found = typicality(lm, prompt, tokens)
    text = list(prompt)
    for place, token in enumerate(tokens):
        law = scorer.law(text)
        assert found.surprises[place] == pytest.approx(-float(law[token].log()), abs=1e-4)
        assert found.likeliest[place] is (int(law.argmax()) == token)
        assert found.entropies[place] == pytest.approx(float(torch.special.entr(law).sum()), abs=1e-4)
        text.append(token)
    assert len(found.surprises) == len(tokens)


def test_deviations_and_their_share() -> None:
    told = Typicality((1.0, 2.0, 0.5, 3.0), (1.2, 1.0, 0.5, 2.5), (True, False, True, False))
    assert told.deviations == pytest.approx((0.2, 1.0, 0.0, 0.5))
    assert told.deviation == pytest.approx(0.425)
    assert told.local(0.5) == 0.5
    assert told.local(2.0) == 1.0
