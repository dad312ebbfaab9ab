"""The threshold of `adadec`: found again on synthetic data, learned from a model, and refused where nothing can be learned."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decodery.errors import BadInput
from decodery.models.forward import Forward
from decodery.testing import toy_language_model
from decodery.training import adadec_threshold
from decodery.training.adadec_threshold import _regression, learn, library_solutions, main, observe, read_solutions
from decodery.training.library_texts import functions, paragraphs


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


def test_the_recipe_learns_from_what_every_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code and prose apart, in the form that ships; or from solutions that are given."""
    lm, seen = toy_language_model(), []

    def observed(lm: Any, pairs: Any, on_progress: Any) -> Any:
        seen.append(list(pairs))
        entropies = np.random.default_rng(len(pairs)).gamma(1.5, 1.2, 2000)
        return entropies, entropies < 1 + len(pairs) / 4

    monkeypatch.setattr("decodery.loading.load", lambda name: lm)
    monkeypatch.setattr(adadec_threshold, "observe", observed)
    path = tmp_path / "adadec-toy.json"
    main(["--model", "toy", "--functions", "4", "--paragraphs", "9", "--output", str(path)])
    card = json.loads(path.read_text())
    assert card["fingerprint"] == lm.network.fingerprint()
    assert set(card["metrics"]) == {"code", "prose"}
    assert seen == list(library_solutions(4, 9).values())
    for kind, pairs in library_solutions(4, 9).items():
        assert card["metrics"][kind]["threshold"] == pytest.approx(1 + len(pairs) / 4, rel=0.2)
    given = tmp_path / "solutions.jsonl"
    given.write_text(json.dumps({"prompt": "a", "solution": "b"}) + "\n")
    main(["--model", "toy", "--solutions", str(given), "--output", str(path)])
    assert set(json.loads(path.read_text())["metrics"]) == {"code"}
    assert seen[-1] == [("a", "b")]


def test_texts_of_the_library() -> None:
    for function in functions(5):
        assert ">>>" in function.prompt
        ast.parse(function.prompt + function.solution)
    assert paragraphs(30) == paragraphs(60)[:30]
    for paragraph in paragraphs(60):
        assert len(paragraph) >= 200
        assert "\n" not in paragraph
    code, prose = library_solutions(3, 5).values()
    assert len(code) == 3
    assert [first + rest for first, rest in prose] == [text for text in paragraphs(5) if ". " in text]
