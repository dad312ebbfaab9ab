"""What a model says of the tokens of a text: at which temperature it was likely drawn, and how surprising it is then."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from decodery.provenance import surprise
from decodery.provenance.surprise import TEMPERATURES, probabilities_of
from decodery.testing import toy_language_model

PROMPT = list(b"a cat sat")


def test_greedy_text_is_certain_and_drawn_text_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toy_language_model(4)
    greedy = lm.generate(PROMPT, max_new_tokens=30, ignore_eos=True).token_ids
    likely, temperature = probabilities_of(lm, greedy, PROMPT)
    assert temperature == TEMPERATURES[0]
    assert likely.mean() > 0.98
    drawn = lm.generate(PROMPT, max_new_tokens=60, temperature=1.0, seed=1, ignore_eos=True).token_ids
    likely, temperature = probabilities_of(lm, drawn, PROMPT)
    assert temperature >= 0.8
    monkeypatch.setattr(surprise, "AT_ONCE", 7)
    again, _ = probabilities_of(lm, drawn, PROMPT)
    assert again == pytest.approx(likely, rel=1e-4)


def test_it_is_the_law_at_the_likeliest_temperature() -> None:
    lm = toy_language_model(4)
    drawn = lm.generate(PROMPT, max_new_tokens=40, temperature=0.5, seed=1, ignore_eos=True).token_ids
    likely, temperature = probabilities_of(lm, drawn)
    assert 0.1 < temperature < 1.0
    assert likely[0] == 1.0  # nothing stands before it
    sums = [np.log(probabilities_at(lm, drawn, one)).sum() for one in TEMPERATURES]
    assert TEMPERATURES[int(np.argmax(sums))] == temperature
    assert np.log(likely).sum() == pytest.approx(max(sums), rel=1e-4)
    assert probabilities_of(lm, drawn[:1])[0].tolist() == [1.0]


def probabilities_at(lm: object, tokens: list[int], temperature: float) -> np.ndarray:
    """By log probabilities of all tokens, which the model tells of a text."""
    scored = lm.score(tokens, top=lm.network.vocabulary)  # type: ignore[attr-defined]
    found = [1.0]
    for place in range(1, len(tokens)):
        row = torch.empty(scored.top_ids.shape[1]).scatter_(0, scored.top_ids[place], scored.top_logprobs[place])
        found.append(float((row / temperature).log_softmax(-1)[tokens[place]].exp()))
    return np.array(found).clip(1e-300)
