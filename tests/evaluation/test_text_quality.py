"""Measures of open-ended text, on texts whose values are known."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from decodery.errors import BadInput, MethodUnavailable
from decodery.evaluation import mauve as mauve_module
from decodery.evaluation.mauve import features, mauve
from decodery.evaluation.text_quality import coherence, distinct, diversity, momentum_labels, oracle, repetition
from decodery.models.forward import POST_NORM, Forward
from decodery.sampling.steps.momentum_decoding import MomentumDecoding
from decodery.testing import TabularScorer, scripted_language_model, story_scorer, toy_language_model


def test_repetition_is_the_share_of_runs_that_came_before() -> None:
    text = [1, 2, 1, 2, 1, 2]
    assert [repetition(text, size) for size in (1, 2, 3, 6)] == pytest.approx([4 / 6, 3 / 5, 2 / 4, 0])
    assert repetition(text, 7) == repetition([], 1) == 0
    assert diversity(text) == pytest.approx((2 / 5) * (2 / 4) * (2 / 3))
    assert diversity([1, 2, 3, 4, 5]) == 1
    assert diversity([7] * 5) == pytest.approx(1 / 4 * 1 / 3 * 1 / 2)


def test_distinct_counts_over_all_texts() -> None:
    assert distinct([[1, 2, 3], [1, 2, 4]], 2) == 3 / 4
    assert distinct([[1, 2, 3], [1, 2, 3]], 3) == 1 / 2
    assert distinct([[1]], 2) == 0


def test_coherence_is_the_mean_log_probability_under_the_scoring_model() -> None:
    scorer = TabularScorer(6, order=2, seed=1)
    lm = scripted_language_model(scorer)
    total, text = 0.0, [0, 3]
    for token in (1, 2, 5):
        total += math.log(float(scorer.law(text)[token]))
        text.append(token)
    assert coherence(lm, [0, 3], [1, 2, 5]) == pytest.approx(total / 3, abs=1e-5)
    assert coherence(lm, "ad", "bcf") == pytest.approx(total / 3, abs=1e-5)
    with pytest.raises(ValueError, match="at least one token"):
        coherence(lm, "ad", "")


def test_the_oracle_takes_the_best_text() -> None:
    reference = "the cat sat on the mat"
    assert oracle(["a dog", "the cat sat"], reference) == pytest.approx(2 * 3 / (3 + 6))
    assert oracle(["a dog", reference.upper()], reference) == 1
    assert oracle(["ab", "abcd"], "x", lambda text, _: -len(text)) == -2
    with pytest.raises(ValueError, match="no texts"):
        oracle([], reference)


def test_labels_of_a_text_that_momentum_decoding_wrote() -> None:
    lm = scripted_language_model(story_scorer(vocabulary=24, surprise=2.0))
    prompt, step = [3, 1, 4, 1, 5, 9, 2, 6], MomentumDecoding(0.2)
    reply = lm.generate(prompt, "autoregressive", max_new_tokens=40, momentum_alpha=0.2)
    labels = momentum_labels(lm, prompt, reply.token_ids, step)
    text, first = list(prompt), []
    for token in reply.token_ids:
        likeliest = int(lm.network.score([tuple(text)], True)[0].argmax())
        first.append((likeliest in text, likeliest == token))
        text.append(token)
    assert labels == tuple(0 if not seen else 1 if same else 2 for seen, same in first)
    assert set(labels) == {0, 1, 2}


def test_features_are_the_last_rows_of_a_text() -> None:
    lm = toy_language_model(layers=2)
    texts = ["a cat", "once upon a time there was", "x"]
    found = features(lm, texts, longest=8, at_once=2)
    assert found.shape == (3, lm.network.hidden)
    assert found.dtype == np.float32
    for row, text in zip(found, texts, strict=True):
        tokens = lm.tokenize(text)[:8]
        [scores] = lm.network.run([Forward(lm.network.new_sequence(), tokens, taps=(POST_NORM,))])
        np.testing.assert_allclose(row, scores.hidden[POST_NORM][-1].numpy(), atol=1e-4)
    with pytest.raises(BadInput, match="text 2 of 2 is empty"):
        features(lm, ["a", ""])
    blind = scripted_language_model(TabularScorer(4))
    blind.network.hidden = None
    with pytest.raises(MethodUnavailable, match="hidden rows"):
        features(blind, ["a"])


def clusters(shares: list[float], count: int, seed: int) -> np.ndarray:
    """Points of clusters far apart, in these shares."""
    generator = np.random.default_rng(seed)
    centres = np.eye(len(shares)) * 100
    sizes = [round(share * count) for share in shares]
    return np.concatenate(
        [generator.normal(centre, 1.0, (size, len(shares))) for centre, size in zip(centres, sizes, strict=True)]
    ).astype(np.float32)


def area(p: np.ndarray, q: np.ndarray, scale: float = 5.0) -> float:
    """Under the curve of exp(-scale * divergence) of both histograms from their mixtures, by the definition."""
    curve = [(0.0, 1.0)]
    for weight in np.linspace(1e-6, 1 - 1e-6, 4001):
        mixture = weight * p + (1 - weight) * q
        one, other = ((law[law > 0] * np.log(law[law > 0] / mixture[law > 0])).sum() for law in (q, p))
        curve.append((math.exp(-scale * one), math.exp(-scale * other)))
    curve = sorted([*curve, (1.0, 0.0)])
    x, y = np.array(curve).T
    return float(np.trapezoid(y, x))


@pytest.mark.parametrize("shares", [[0.6, 0.4], [0.9, 0.1], [1.0, 0.0]])
def test_mauve_of_known_histograms(shares: list[float]) -> None:
    pytest.importorskip("mauve")
    found = mauve(clusters([0.5, 0.5], 200, 1), clusters(shares, 200, 2), clusters=2)
    assert found.value == pytest.approx(area(np.array([0.5, 0.5]), np.array(shares)), abs=0.02)
    assert found.clusters == 2


def test_mauve_falls_as_sets_drift_apart() -> None:
    pytest.importorskip("mauve")
    generator = np.random.default_rng(3)
    base = generator.normal(0, 1, (300, 8)).astype(np.float32)
    values = [
        mauve(base, generator.normal(shift, 1, (300, 8)).astype(np.float32)).value for shift in (0.0, 0.5, 1.0, 4.0)
    ]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.9
    assert values[-1] < 0.05


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(MethodUnavailable, match=r"decodery\[mauve\]"):
        mauve_module.mauve(np.zeros((4, 2)), np.zeros((4, 2)))
