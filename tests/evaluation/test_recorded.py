"""Replaying a drafter on a recorded text gives what the engine would count."""

from __future__ import annotations

import pytest

from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.evaluation.questions import Question
from decodery.evaluation.recorded import DraftReplay, record, replay
from decodery.testing import scripted_language_model, story_scorer
from decodery.testing.outputs import new_request


@pytest.mark.parametrize(
    "spec",
    [
        "prompt-lookup(adapt=False)",
        "suffix-automaton(adapt=False)",
        "approximate-match-lookup(policy=none, places=3)",
        "approximate-match-lookup(policy=class)",
        "adaptive-draft-verification(adapt=False, simulations=20)",
    ],
)
def test_it_counts_what_the_engine_counts(spec):
    lm = scripted_language_model(story_scorer())
    prompt = [1, 2, 3, 1, 2, 4, 1, 2]
    stats = lm.generate(prompt, spec, max_new_tokens=40, session="engine").stats
    plain = lm.generate(prompt, "autoregressive", max_new_tokens=40)
    request, chosen = new_request(lm, as_method(spec), prompt, Settings(max_new_tokens=40, seed=0))
    found = replay(chosen.drafter(request), [*prompt, *plain.token_ids], len(prompt))
    assert (found.tokens, found.rounds) == (40, stats.rounds)
    assert (found.drafted, found.accepted) == (stats.drafted, stats.accepted)
    assert found.tokens_per_round == stats.acceptance_length
    assert 0 < len(found.times) <= found.rounds
    assert min(found.times) > 0


def test_replays_add_up():
    total = DraftReplay(10, 5, 8, 3, [0.5, 0.2]) + DraftReplay(20, 5, 2, 1, [0.1])
    assert total == DraftReplay(30, 10, 10, 4, [0.5, 0.2, 0.1])
    assert total.tokens_per_round == 3.0
    assert total.seconds_per_draft == 0.2
    assert DraftReplay().tokens_per_round == 0.0


def test_answers_are_recorded():
    lm = scripted_language_model(story_scorer())
    [text] = record(lm, [Question("1", "qa", ("abc", "and then"))], max_new_tokens=6)
    assert text.tokens[: text.start] == lm.encode("abc")
    assert text.tokens[text.start :] == lm.generate("abc", "autoregressive", max_new_tokens=6).token_ids
    assert text.category == "qa"


def test_a_drafter_that_asks_for_forwards_cannot_be_replayed():
    lm = scripted_language_model(story_scorer(), drafter=story_scorer(surprise=0.5))
    request, chosen = new_request(lm, as_method("draft-model"), [1, 2], Settings(max_new_tokens=9, seed=0))
    with pytest.raises(TypeError, match="asks for forwards"):
        replay(chosen.drafter(request), [1, 2, 3, 4], 2)
