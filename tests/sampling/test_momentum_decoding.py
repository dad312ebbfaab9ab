"""Momentum decoding: the lengths of repetitions, the score by hand, what never changes, and that drafts change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from law_cases import FORBIDDEN, law_of, rows

from decodery.evaluation.text_quality import momentum_labels
from decodery.sampling.steps.momentum_decoding import MomentumDecoding
from decodery.testing import ScriptedScorer, scripted_language_model, story_scorer

TABLE = {0: 0.0, 1: 1.0, 2: 3.0, 3: 4.0, 4: 5.0, 5: 5.0}


def greedy(text: list[int], **settings: Any) -> Any:
    return law_of(text, **{"temperature": 0.0, "momentum_alpha": 0.2, **settings})


def lengths(text: list[int], longest: int = 5, **settings: Any) -> dict[int, int]:
    return MomentumDecoding(0.2, momentum_longest=longest, **settings).lengths(greedy(text).prefix())


def brute_force(text: list[int], token: int, longest: int) -> int:
    """By sets of runs of tokens, as in the paper."""
    if token not in text:
        return 0
    for size in range(longest, 1, -1):
        runs = {tuple(text[start : start + size]) for start in range(len(text) - size + 1)}
        if len(text) >= size - 1 and (*text[len(text) - size + 1 :], token) in runs:
            return size
    return 1


def test_lengths_are_those_of_a_scan() -> None:
    generator = np.random.default_rng(1)
    for _ in range(10_000):
        text = generator.integers(0, 6, generator.integers(1, 41)).tolist()
        longest, found = int(generator.integers(2, 9)), None
        found = lengths(text, longest)
        token = int(generator.integers(0, 7))
        assert found.get(token, 0) == brute_force(text, token, longest)


def test_by_hand() -> None:
    found = lengths([1, 2, 3, 7, 8, 2, 3])
    assert (found[7], found[2], found.get(9, 0)) == (3, 1, 0)
    # After "2 3" the token 7 would repeat three tokens, 2 would repeat itself, 9 is new: 0.60 - 0.8, 0.29 - 0.2, 0.11.
    row = torch.full((10,), 1e-9).log()
    row[[7, 2, 9]] = torch.tensor([0.60, 0.29, 0.11]).log()
    assert greedy([1, 2, 3, 7, 8, 2, 3]).likeliest(row) == 9
    assert greedy([1, 2, 3, 7, 8, 2, 3], momentum_alpha=0.1).likeliest(row) == 7  # 0.20, 0.19, 0.11
    assert greedy([1, 2, 3, 7, 8, 2, 3], momentum_alpha=0.12).likeliest(row) == 2  # 0.12, 0.17, 0.11
    assert greedy([1, 2, 3, 7, 8, 2, 3], momentum_k=2).likeliest(row) == 2  # 9 is no candidate
    assert greedy([1, 2, 3, 7, 8, 2, 3], momentum_k=1).likeliest(row) == 7  # never empty


@pytest.mark.parametrize("table", [(2.0,), (0.0, 0.0, 0.0, 5.0), (1.0, 1.0, 2.0, 3.0, 4.0)])
def test_other_resistances(table: tuple[float, ...]) -> None:
    text = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4]
    row = torch.full((10,), 1e-9).log()
    row[[5, 2, 9]] = torch.tensor([0.55, 0.30, 0.15]).log()
    assert lengths(text) == {1: 1, 2: 1, 3: 1, 4: 1, 5: 5, 6: 1}
    scores = {5: 0.55 - 0.2 * table[min(5, len(table)) - 1], 2: 0.30 - 0.2 * table[0], 9: 0.15}
    assert greedy(text, momentum_resistance=table).likeliest(row) == max(scores, key=scores.__getitem__)


def test_a_flat_resistance_knows_no_lengths() -> None:
    """What a penalty by token does, whatever its weight: here repeating five tokens costs as much as repeating one."""
    text = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4]
    row = torch.full((10,), 1e-9).log()
    row[[5, 2]] = torch.tensor([0.6, 0.4]).log()
    assert greedy(text, momentum_resistance=(2.0,)).likeliest(row) == 5
    assert greedy(text).likeliest(row) == 2


def test_the_score_of_every_candidate() -> None:
    """On random rows and texts, by the definition; among equals the likelier."""
    generator = np.random.default_rng(2)
    for row in rows(400, wide=12):
        text = generator.integers(0, 12, 20).tolist()
        law = row.softmax(0).double()
        order = sorted(range(12), key=lambda t: (-float(law[t]), t))[:5]
        scores = [float(law[t]) - 0.2 * TABLE[brute_force(text, t, 5)] for t in order if row[t] > FORBIDDEN]
        assert greedy(text).likeliest(row) == order[scores.index(max(scores))]


def label(text: list[int], row: torch.Tensor, **settings: Any) -> int:
    return MomentumDecoding(**{"momentum_alpha": 0.2, **settings}).label(row, greedy(text).prefix())


def test_labels_say_what_became_of_the_likeliest_token() -> None:
    text, row = [1, 2, 3, 7, 8, 2, 3], torch.full((10,), 1e-9).log()
    row[[7, 2, 9]] = torch.tensor([0.60, 0.29, 0.11]).log()
    before = row.clone()
    assert (label(text, row), label(text, row, momentum_alpha=0.1)) == (2, 1)
    assert torch.equal(row, before)
    assert label([1, 2, 3, 8, 2, 3], row) == 0  # 7 is new there
    assert MomentumDecoding(0.2).label(row, law_of(text, [7], temperature=0.0).prefix()) == 0  # and ends the text here
    generator = np.random.default_rng(6)
    for row in rows(300, wide=12):
        text = generator.integers(0, 12, 10).tolist()
        first, chosen = int(row.argmax()), greedy(text).likeliest(row)
        expected = 0 if first not in text else 1 if chosen == first else 2
        assert label(text, row) == expected
        assert chosen == first or expected == 2


def test_end_tokens_meet_no_resistance_unless_asked_for() -> None:
    row = torch.tensor([0.38, 0.32, 0.3]).log()
    law = law_of([0, 0, 1], [0], temperature=0.0, momentum_alpha=0.2)
    assert law.likeliest(row) == 0
    assert law_of([0, 0, 1], [0], temperature=0.0, momentum_alpha=0.2, momentum_ends_resist=True).likeliest(row) == 2


def test_tokens_between_turns_meet_none_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a chat the tokens between its turns come again and again, and no text repeats itself by them."""
    lm = scripted_language_model(ScriptedScorer(lambda text: [5.0, 4.95, 0.0, 0.0], 4))
    monkeypatch.setattr(type(lm.tokenizer), "all_special_ids", [0], raising=False)
    prompt = [0, 0, 0, 2]

    def first(**settings: Any) -> int:
        return int(lm.generate(prompt, "autoregressive", max_new_tokens=1, momentum_alpha=0.2, **settings).token_ids[0])

    assert first() == 0
    assert first(momentum_ends_resist=True) == 1
    assert momentum_labels(lm, prompt, [0, 0], MomentumDecoding(0.2)) == (0, 0)
    assert momentum_labels(lm, prompt, [0, 0], MomentumDecoding(0.2, momentum_ends_resist=True))[1] == 2


def test_the_likeliest_is_kept_ever_more_seldom_as_alpha_grows() -> None:
    generator = np.random.default_rng(3)
    for row in rows(200, wide=12, holes=False):
        text = generator.integers(0, 12, 15).tolist()
        kept = [
            greedy(text, momentum_alpha=alpha).likeliest(row) == int(row.argmax()) for alpha in (0.0, 0.05, 0.1, 0.2)
        ]
        assert kept == sorted(kept, reverse=True)
        assert kept[0]


def test_alpha_of_zero_is_greedy_decoding() -> None:
    lm, generator = scripted_language_model(story_scorer()), np.random.default_rng(4)
    prompts = [generator.integers(0, 24, 1 + place % 9).tolist() for place in range(100)]
    plain = lm.generate(prompts, "autoregressive", max_new_tokens=12)
    same = lm.generate(prompts, "autoregressive", max_new_tokens=12, momentum_alpha=0.0)
    assert [reply.token_ids for reply in same] == [reply.token_ids for reply in plain]


def test_where_nothing_comes_back_it_is_greedy_decoding() -> None:
    scorer = ScriptedScorer(lambda prefix: torch.arange(64) == len(prefix), 64)
    lm = scripted_language_model(scorer)
    reply = lm.generate([0, 1, 2], "autoregressive", max_new_tokens=40, momentum_alpha=0.2)
    assert reply.token_ids == list(range(3, 43))
    assert reply.stats.forwards == 40
    assert reply.order == ("momentum_decoding",)


def test_it_breaks_circles_at_a_forward_a_token() -> None:
    def circle(prefix: tuple[int, ...]) -> list[float]:
        law = [0.01] * 20
        law[(prefix[-1] + 1) % 5], law[5 + len(prefix) % 15] = 0.5, 0.2
        return [float(np.log(p)) for p in law]

    lm = scripted_language_model(ScriptedScorer(circle, 20))
    plain = lm.generate([0], "autoregressive", max_new_tokens=30)
    moved = lm.generate([0], "autoregressive", max_new_tokens=30, momentum_alpha=0.2)
    assert max(plain.token_ids) == 4
    assert len(set(moved.token_ids)) > 15
    assert moved.stats.forwards == 30


@pytest.mark.parametrize("method", ["prompt-lookup", "token-recycling", "cascade", "draft-model", "swift"])
def test_drafts_change_nothing(method: str) -> None:
    lm = scripted_language_model(story_scorer(), drafter=story_scorer(surprise=0.5, name="other"))
    generator = np.random.default_rng(5)
    prompts = [generator.integers(0, 24, 1 + place % 9).tolist() for place in range(20)]
    settings: dict[str, Any] = {"max_new_tokens": 24, "momentum_alpha": 0.05, "momentum_longest": 4}
    plain = lm.generate(prompts, "autoregressive", **settings)
    drafted = lm.generate(prompts, method, **settings)
    assert [reply.token_ids for reply in drafted] == [reply.token_ids for reply in plain]
    assert sum(reply.stats.accepted for reply in drafted) > 0
    assert plain[0].token_ids != lm.generate(prompts[0], "autoregressive", max_new_tokens=24).token_ids
