"""The numbers of a result: their definitions, by hand and on real runs."""

from __future__ import annotations

import json
import time

import pytest

from decodery.engine.statistics import ModelStatistics, Statistics, peak_memory
from decodery.testing import scripted_language_model, story_scorer


def test_work_is_counted_by_model() -> None:
    statistics = Statistics(target="large")
    assert (statistics.forwards, statistics.rows, statistics.acceptance_length) == (0, 0, 0.0)
    assert statistics.tokens_per_second == 0.0
    statistics.count("large", rows=5, layers=4)
    statistics.count("large", rows=1, layers=4)
    statistics.count("small", rows=3, layers=2)
    assert statistics.models == {"large": ModelStatistics(2, 6, 24), "small": ModelStatistics(1, 3, 6)}
    assert (statistics.forwards, statistics.rows) == (2, 6)


def test_times_run_from_submission() -> None:
    statistics = Statistics()
    time.sleep(0.02)
    statistics.committed(from_draft=False)
    time.sleep(0.02)
    statistics.new_tokens = 10
    statistics.finish()
    assert 0.02 <= statistics.first_token_seconds < statistics.seconds
    assert statistics.seconds >= 0.04
    assert statistics.tokens_per_second == pytest.approx(10 / statistics.seconds)
    assert statistics.peak_memory_bytes == peak_memory() > 10_000_000


@pytest.mark.parametrize("method", ["autoregressive", "token-recycling", "prompt-lookup", "draft-model(layers=1)"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_numbers_of_a_run_add_up(method: str, temperature: float) -> None:
    lm = scripted_language_model(story_scorer())
    stats = lm.generate("abcabcabc", method, max_new_tokens=40, temperature=temperature, seed=2).stats
    assert stats.prompt_tokens == 9
    assert stats.new_tokens == 40
    assert stats.accepted + stats.bonus == stats.new_tokens
    assert 0 <= stats.accepted <= stats.drafted
    assert stats.acceptance_length == pytest.approx(stats.new_tokens / stats.rounds)
    assert 0 < stats.first_token_seconds <= stats.seconds
    target = stats.models[stats.target]
    assert target.layer_rows == 3 * target.rows
    assert stats.forwards >= stats.rounds
    # Every token but the last is scored once, and every drafted token is a row.
    assert stats.rows >= stats.prompt_tokens + stats.new_tokens - 1
    if method == "autoregressive":
        assert (stats.rounds, stats.forwards, stats.drafted) == (40, 40, 0)
        assert stats.rows == 9 + 39
        assert stats.acceptance_length == 1.0
    else:
        assert stats.rounds < 40
    if method.startswith("draft-model"):
        early = stats.models[f"{stats.target} (1 of 3 layers)"]
        assert early.forwards > 0
        assert early.layer_rows == early.rows
    again = json.loads(json.dumps(stats.as_dict()))
    assert again["acceptance_length"] == stats.acceptance_length
    assert again["models"][stats.target]["rows"] == stats.rows
