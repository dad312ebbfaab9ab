"""The loop that all drafters share, with drafters whose fate is known."""

from __future__ import annotations

import math

import pytest

from decodery.engine.events import Drafted, Token
from decodery.speculative.draft import EMPTY, ROOT, Draft
from decodery.speculative.loop import Beginning
from decodery.testing import (
    DrafterLaws,
    adversarial_draft,
    drafting_method,
    oracle_draft,
    random_draft,
    scripted_language_model,
    story_scorer,
)


class TestDraftersOfKnownFate(DrafterLaws):
    methods = (oracle_draft(3), adversarial_draft(3, width=2), random_draft(9))
    samples = 300

    def test_sampled_law_is_that_of_plain_decoding_exactly(self):
        """The oracle looks ahead at draws, and the others never depend on them; only the random one is enumerated."""
        lm, scorer = self.tabular_host(3, stop_ids=(2,))
        self.assert_exact(lm, scorer, random_draft(5), self.exact_settings[0], stop_ids=(2,))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("count", [1, 2, 7, 24])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_an_oracle_needs_the_fewest_forwards(length, count, temperature):
    lm = scripted_language_model(story_scorer())
    settings = {"max_new_tokens": count, "temperature": temperature, "seed": 4}
    reply = lm.generate([1, 2, 3], method=oracle_draft(length), **settings)
    assert reply.token_ids == lm.generate([1, 2, 3], method="autoregressive", **settings).token_ids
    assert reply.stats.forwards == math.ceil(count / (length + 1))
    assert reply.stats.accepted == reply.stats.drafted


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("width", [1, 3])
def test_an_adversary_costs_forwards_but_no_token(width, temperature):
    lm = scripted_language_model(story_scorer())
    settings = {"max_new_tokens": 20, "temperature": temperature, "seed": 4}
    reply = lm.generate([1, 2, 3], method=adversarial_draft(4, width), **settings)
    assert reply.token_ids == lm.generate([1, 2, 3], method="autoregressive", **settings).token_ids
    assert reply.stats.forwards == 20
    assert reply.stats.accepted == 0


def test_events_tell_the_rounds():
    lm = scripted_language_model(story_scorer())
    events = list(lm.stream([1, 2], method=oracle_draft(3), max_new_tokens=8))
    drafts = [event for event in events if isinstance(event, Drafted)]
    tokens = [event for event in events if isinstance(event, Token)]
    assert [len(draft.tokens) for draft in drafts] == [3, 3]
    assert drafts[0].parents == (ROOT, 0, 1)
    assert [token.from_draft for token in tokens] == [True, True, True, False] * 2
    assert [token.index for token in tokens] == list(range(8))


def test_a_draft_beyond_the_end_is_cut():
    """A drafter that ignores the depth it is given."""
    whole = oracle_draft(50)

    def careless(request, tokens, depth) -> Draft:
        return whole.drafter(request).propose(tokens, 50)

    lm = scripted_language_model(story_scorer())
    reply = lm.generate([1, 2], method=drafting_method("careless", careless), max_new_tokens=5)
    assert len(reply.token_ids) == 5
    assert reply.stats.drafted == 4


def test_an_empty_draft_is_a_plain_step():
    lm = scripted_language_model(story_scorer())
    reply = lm.generate([1, 2], method=drafting_method("idle", lambda request, tokens, depth: EMPTY), max_new_tokens=6)
    assert reply.stats.forwards == reply.stats.rounds == 6
    assert not [event for event in reply.events if isinstance(event, Drafted)]


def test_a_drafter_that_fails_ends_its_request_alone():
    def failing(request, tokens, depth):
        raise RuntimeError("no idea")

    lm = scripted_language_model(story_scorer())
    methods = ["autoregressive", drafting_method("failing", failing)]
    good, bad = lm.generate([[1, 2], [1, 2]], method=methods, max_new_tokens=6)
    assert good.finish_reason == "length"
    assert bad.finish_reason == "error"
    assert "no idea" in str(bad.error)
    with pytest.raises(RuntimeError, match="no idea"):
        lm.generate([1, 2], method=methods[1], max_new_tokens=6)


def test_the_beginning_of_a_text_stays_what_it_is_while_the_text_grows():
    text = [5, 6, 7]
    beginning = Beginning(text, 3)
    text += [8, 9]
    assert (len(beginning), list(beginning), [*beginning, 1]) == (3, [5, 6, 7], [5, 6, 7, 1])
    assert (beginning[-1], beginning[0], beginning[-2:], beginning[1:9]) == (7, 5, [6, 7], [6, 7])
    assert list(reversed(beginning)) == [7, 6, 5]
    assert 8 not in beginning
    with pytest.raises(IndexError):
        beginning[3]
