"""Plain decoding, which everything else is measured against, measured against arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from decodery.engine.settings import Settings
from decodery.models.forward import Forward
from decodery.testing import (
    MethodLaws,
    ScriptedScorer,
    TabularScorer,
    exact_outputs,
    scripted_language_model,
    story_scorer,
    total_variation,
    watched,
)


class TestAutoregressive(MethodLaws):
    methods = ("autoregressive",)


def test_greedy_takes_the_highest_score():
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    tokens = [3, 1]
    for _ in range(20):
        tokens.append(int(scorer.score([tuple(tokens)], True)[0].argmax()))
    assert lm.generate([3, 1], method="autoregressive", max_new_tokens=20).token_ids == tokens[2:]


def test_ties_go_to_the_lowest_token():
    lm = scripted_language_model(ScriptedScorer(lambda prefix: [0.0, 2.0, 2.0, 1.0], 4))
    assert lm.generate([0], method="autoregressive", max_new_tokens=3).token_ids == [1, 1, 1]
    assert lm.generate([0], method="token-recycling", max_new_tokens=3).token_ids == [1, 1, 1]


def test_one_row_per_token():
    lm = scripted_language_model(story_scorer())
    asked: list[int] = []
    with watched(lm.network, lambda forward: asked.append(forward.count)):
        stats = lm.generate([1, 2, 3, 4], method="autoregressive", max_new_tokens=6).stats
    assert asked == [4, 1, 1, 1, 1, 1]
    assert (stats.forwards, stats.rounds, stats.rows) == (6, 6, 9)
    assert (stats.drafted, stats.accepted, stats.bonus) == (0, 0, 6)
    assert stats.acceptance_length == 1.0


@pytest.mark.parametrize(
    "settings",
    [
        Settings(temperature=1.0, max_new_tokens=3, seed=0),
        Settings(temperature=0.7, top_p=0.9, max_new_tokens=3, seed=0),
        Settings(temperature=1.3, top_k=2, presence_penalty=0.5, frequency_penalty=0.3, max_new_tokens=3, seed=0),
        Settings(temperature=1.0, min_p=0.3, logit_bias={1: 2.0}, repetition_penalty=1.2, max_new_tokens=3, seed=0),
    ],
)
def test_the_law_is_the_chain_rule(settings):
    """Against probabilities multiplied by hand from the scorer's own rows, without `TabularScorer.joint`."""
    scorer = TabularScorer(4, order=None, seed=3)
    law = exact_outputs(scripted_language_model(scorer), "autoregressive", [0, 1], settings)

    def processed(prefix: tuple[int, ...], output: tuple[int, ...]) -> list[float]:
        scores = [math.log(p) for p in scorer.law(prefix).tolist()]
        for token in set(prefix):
            penalty = settings.repetition_penalty
            scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
        for token in set(output):
            scores[token] -= settings.presence_penalty + settings.frequency_penalty * output.count(token)
        for token, bias in settings.logit_bias.items():
            scores[token] += bias
        scores = [score / settings.temperature for score in scores]
        ranked = sorted(range(4), key=lambda token: -scores[token])
        if settings.top_k:
            ranked = ranked[: settings.top_k]
        masses = {token: math.exp(scores[token]) for token in ranked}
        total = sum(masses.values())
        kept, before = {}, 0.0
        for token in ranked:
            if before < settings.top_p and masses[token] >= settings.min_p * masses[ranked[0]]:
                kept[token] = masses[token]
            before += masses[token] / total
        return [kept.get(token, 0.0) / sum(kept.values()) for token in range(4)]

    expected: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        expected = {
            (*output, token): mass * chance
            for output, mass in expected.items()
            for token, chance in enumerate(processed((0, 1, *output), output))
            if chance > 0
        }
    assert total_variation(law, expected) < 1e-6


def test_the_prompt_is_scored_once():
    lm = scripted_language_model(story_scorer())
    rows: list[int] = []
    with watched(lm.network, lambda forward: rows.append(forward.count)):
        prompt = list(range(20)) * 10
        reply = lm.generate(prompt, method="autoregressive", max_new_tokens=2, echo=True, logprobs=0)
    assert sum(rows) == len(prompt) + 1
    assert len(reply.prompt_logprobs) == len(prompt) - 1
    sequence = lm.network.new_sequence()
    [scores] = lm.network.run([Forward(sequence, prompt)])
    expected = scores.logits.log_softmax(dim=-1)[torch.arange(199), torch.tensor(prompt[1:])]
    assert [entry.raw for entry in reply.prompt_logprobs] == pytest.approx(expected.tolist(), abs=1e-5)
