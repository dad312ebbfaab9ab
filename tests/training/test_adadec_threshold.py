"""The threshold of `adadec`: found again on synthetic data, learned from a model, and refused where nothing can be learned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from decodery.errors import BadInput
from decodery.models.forward import Forward
from decodery.testing import toy_language_model
from decodery.training.adadec_threshold import _regression, learn, observe, read_solutions


def test_it_is_where_the_first_choice_is_as_likely_as_not() -> None:
    """P = sigmoid(b0 + b1 H): the threshold is -b0 / b1, although one class is thinned out for the fit. Thirty seeds; one run
    scatters."""
    wanted, found = 3.2 / 1.6, []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        entropies = generator.gamma(1.5, 1.2, 50_000)
        first = generator.random(50_000) < 1 / (1 + np.exp(-(3.2 - 1.6 * entropies)))
        found.append(learn(entropies, first, seed).threshold)
    assert abs(np.mean(found) / wanted - 1) < 0.03
    assert all(abs(value / wanted - 1) < 0.15 for value in found)


def test_the_regression_finds_what_made_the_data() -> None:
    generator = np.random.default_rng(1)
    entropies = generator.uniform(0, 4, 100_000)
    first = generator.random(100_000) < 1 / (1 + np.exp(-(2.0 - 1.0 * entropies)))
    coefficient, intercept = _regression(entropies, first.astype(float))
    assert coefficient == pytest.approx(-1.0, abs=0.03)
    assert intercept == pytest.approx(2.0, abs=0.06)


def test_tokens_are_observed_as_the_model_scores_them() -> None:
    lm = toy_language_model()
    pairs = [("def one():", "\n    return 1"), ("x" * 3, "y" * 140)]
    entropies, first = observe(lm, pairs, lambda done, total: None)
    assert len(entropies) == len(first) == 13 + 140
    text = lm.tokenize(pairs[0][0]) + lm.encode(pairs[0][1])
    [scores] = lm.network.run([Forward(lm.network.new_sequence(), text)])
    start = len(lm.tokenize(pairs[0][0]))
    for place in range(13):
        law = scores.logits[start - 1 + place].double().softmax(0)
        assert entropies[place] == pytest.approx(float(torch.special.entr(law).sum()), abs=1e-4)
        assert bool(first[place]) is (int(law.argmax()) == text[start + place])


def test_what_cannot_be_learned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="too few, or all alike"):
        learn(np.ones(100), np.ones(100, dtype=bool))
    generator = np.random.default_rng(0)
    entropies = generator.uniform(0, 4, 5000)
    with pytest.raises(BadInput, match="no likelier where its entropy is low"):
        learn(entropies, generator.random(5000) < entropies / 4)
    path = tmp_path / "solutions.jsonl"
    for text in ("", "no json", json.dumps({"prompt": "a"})):
        path.write_text(text)
        with pytest.raises(BadInput, match="solutions"):
            read_solutions(path)
    path.write_text(json.dumps({"prompt": "a", "solution": "b"}) + "\n")
    assert read_solutions(path) == [("a", "b")]
