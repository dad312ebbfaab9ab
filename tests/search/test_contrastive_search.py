"""Contrastive search: the definition by brute force, greedy decoding at alpha 0, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from decodery.engine.settings import Settings
from decodery.errors import Refused
from decodery.language_model import LanguageModel
from decodery.models.forward import POST_NORM, Forward
from decodery.testing import MethodLaws, scripted_language_model, story_scorer, toy_language_model
from decodery.testing.outputs import new_request


class TestContrastiveSearch(MethodLaws):
    methods = ("contrastive-search", "contrastive-search(alpha=0.3, k=2)")
    deterministic = True


def by_hand(lm: LanguageModel, text: list[int], alpha: float, k: int) -> int:
    """Every candidate scored in a text of its own."""

    def read(tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        [scores] = lm.network.run([Forward(lm.network.new_sequence(), tokens, taps=(POST_NORM,))])
        return scores.logits[-1].double().softmax(0), scores.hidden[POST_NORM].double()

    law, before = read(text)
    scores = {}
    for token in sorted(range(len(law)), key=lambda t: (-float(law[t]), t))[:k]:
        _, hidden = read([*text, token])
        alike = torch.cosine_similarity(hidden[-1:], before).max()
        scores[token] = float((1 - alpha) * law[token] - alpha * alike)
    return max(scores, key=scores.__getitem__)


@pytest.mark.parametrize(("alpha", "k"), [(0.6, 4), (0.1, 8), (1.0, 3)])
def test_it_is_what_its_definition_says(alpha: float, k: int) -> None:
    lm = toy_language_model(layers=2)
    prompt = lm.encode("the cat and the dog and the cat and")
    reply = lm.generate(prompt, f"contrastive-search(alpha={alpha}, k={k})", max_new_tokens=16)
    text = list(prompt)
    for token in reply.token_ids:
        assert token == by_hand(lm, text, alpha, k)
        text.append(token)
    assert reply.stats.forwards == 1 + len(reply.token_ids)
    assert reply.stats.rounds == reply.stats.forwards
    assert reply.stats.rows == len(prompt) + k * len(reply.token_ids)
    plain = lm.generate(prompt, "autoregressive", max_new_tokens=16)
    assert (reply.token_ids != plain.token_ids) is (alpha > 0.1)


def test_without_a_penalty_it_is_greedy_decoding() -> None:
    lm, generator = scripted_language_model(story_scorer()), np.random.default_rng(2)
    prompts = [generator.integers(0, 24, 1 + place % 9).tolist() for place in range(50)]
    plain = lm.generate(prompts, "autoregressive", max_new_tokens=16)
    for spec in ("contrastive-search(alpha=0)", "contrastive-search(k=1)"):
        found = lm.generate(prompts, spec, max_new_tokens=16)
        assert [reply.token_ids for reply in found] == [reply.token_ids for reply in plain]


def test_a_prompt_that_is_scored_for_its_echo_is_looked_at_too() -> None:
    lm = toy_language_model(layers=2)
    prompt = lm.encode("the cat and the dog " * 12)
    plain = lm.generate(prompt, "contrastive-search", max_new_tokens=8)
    echoed = lm.generate(prompt, "contrastive-search", max_new_tokens=8, echo=True, logprobs=0)
    assert echoed.token_ids == plain.token_ids
    assert len(echoed.prompt_logprobs) == len(prompt) - 1


def test_what_is_forbidden_is_no_candidate() -> None:
    """And what it keeps: the text and a row for each candidate."""
    lm = toy_language_model(layers=2)
    allowed = [70, 80]
    reply = lm.generate([70, 71], "contrastive-search(k=4)", max_new_tokens=6, allowed_token_ids=allowed)
    assert set(reply.token_ids) <= set(allowed)
    assert reply.stats.rows == 2 + 2 * 6
    request, method = new_request(lm, "contrastive-search(k=4)", [70, 71], Settings(max_new_tokens=6))
    assert method.caches(request) == [(lm.network, 2 + 6 + 4)]


def test_a_temperature_is_refused() -> None:
    with pytest.raises(Refused, match="contrastive-search does not run with temperature"):
        toy_language_model().generate("a", "contrastive-search", temperature=1.0)
