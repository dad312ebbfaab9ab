"""Draft models that are not made like the target: another padding, a shorter context, another tokenizer."""

from __future__ import annotations

import pytest

from decodery.engine.settings import Settings
from decodery.errors import BadParameter
from decodery.testing import (
    TabularScorer,
    exact_outputs,
    scripted_language_model,
    story_scorer,
    total_variation,
)

ROUNDING = 1e-5
PLAIN = "autoregressive"
METHODS = (
    "draft-model(draft=other, length=2)",
    "draft-model(draft=other, length=2, width=2)",
    "spectr(draft=other, drafts=2, length=2)",
    "optimal-multi-draft(draft=other, widths=2x1)",
    "optimal-multi-draft(draft=other, widths=2x1, mode=with-replacement)",
    "recursive-speculative-decoding(draft=other, width=2, length=2)",
    "recursive-speculative-decoding(draft=other, tree=branching, branching=2x1)",
)
"""All that draw from a draft law."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [2, 6], ids=["narrower", "wider"])
def test_the_law_holds_under_another_padding(method, size):
    """Enumerated. The narrower draft model has no row for a token of the prompt, nor for one that the target may emit."""
    scorer = TabularScorer(3, order=None, seed=5)
    lm = scripted_language_model(scorer, drafter=TabularScorer(size, order=None, seed=8))
    settings = Settings(temperature=1.0, top_p=0.9, max_new_tokens=2, seed=0)
    found = exact_outputs(lm, method, [0, 2, 1], settings)
    assert total_variation(found, scorer.joint([0, 2, 1], 2, settings)) < ROUNDING


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [18, 30])
def test_greedy_output_holds_under_another_padding(method, size):
    lm = scripted_language_model(story_scorer(), drafter=story_scorer(size, surprise=0.3, name="other"))
    accepted = 0
    for prompt in ([1, 2, 3], [20, 23], [23]):
        plain = lm.generate(prompt, method="autoregressive", max_new_tokens=40)
        reply = lm.generate(prompt, method=method, max_new_tokens=40)
        assert reply.token_ids == plain.token_ids
        accepted += reply.stats.drafted
    assert accepted > 0


def test_surplus_tokens_are_not_drafted():
    """A draft model that believes in a token that the target does not have drafts what it holds likely apart from that."""
    target = TabularScorer(3, order=1, given=lambda prefix: [0.5, 0.3, 0.2])
    drafter = TabularScorer(5, order=1, given=lambda prefix: [0.05, 0.03, 0.02, 0.5, 0.4], name="other")
    lm = scripted_language_model(target, drafter=drafter)
    stats = lm.generate([0], method="draft-model(draft=other)", temperature=1.0, seed=3, max_new_tokens=50).stats
    assert stats.accepted == stats.drafted, "without the surplus both laws are one"


def test_a_narrower_draft_model_goes_on_after_a_token_that_it_does_not_have():
    """The target never leaves 0, 1, 2 but for one 5, which the draft model leaves out of what it reads."""
    target = TabularScorer(6, order=1, given=lambda prefix: [float(t == (prefix[-1] + 1) % 3) for t in range(6)])
    drafter = TabularScorer(3, order=1, given=lambda prefix: [float(t == (prefix[-1] + 1) % 3) for t in range(3)])
    lm = scripted_language_model(target, drafter=drafter)
    stats = lm.generate([0, 1, 5], method="draft-model(draft=other, length=4)", max_new_tokens=30).stats
    assert stats.accepted > 20
    only = lm.generate([5], method="draft-model(draft=other, length=4)", max_new_tokens=30)
    assert len(only.token_ids) == 30, "a prompt of which nothing can be read"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafting_ends_with_the_draft_model_s_context(method, temperature):
    """A scorer refuses positions beyond its context, so that a draft that goes further would be an error."""

    def model(context):
        drafter = story_scorer(surprise=0.3, name="other")
        drafter.context = context
        drafter.run_pass = _guarded(drafter, context)
        return scripted_language_model(story_scorer(), drafter=drafter)

    settings = {"temperature": temperature, "seed": 4, "max_new_tokens": 40}
    short = model(20).generate([1, 2, 3], method=method, **settings)
    assert len(short.token_ids) == 40
    assert short.stats.drafted > 0
    assert short.stats.models["other"].rows < 60
    if temperature == 0:
        assert short.token_ids == model(1 << 16).generate([1, 2, 3], method="autoregressive", **settings).token_ids
    none = model(2).generate([1, 2, 3], method=method, **settings)
    assert none.stats.drafted == 0
    assert len(none.token_ids) == 40


def _guarded(drafter, context):
    run_pass = type(drafter).run_pass

    def guarded(forwards):
        for forward in forwards:
            assert max(forward.row_positions()) < context
        return run_pass(drafter, forwards)

    return guarded


@pytest.mark.parametrize("method", METHODS)
def test_a_law_that_forbids_all_that_the_draft_model_knows_drafts_nothing(method):
    """The draft model has tokens 0 and 1, and the request may use neither."""
    scorer = TabularScorer(4, order=None, seed=5)
    lm = scripted_language_model(scorer, drafter=TabularScorer(2, order=None, seed=8))
    bias = {0: -float("inf"), 1: -float("inf")}
    settings = Settings(temperature=1.0, logit_bias=bias, max_new_tokens=2, seed=0)
    found = exact_outputs(lm, method, [0, 1], settings)
    assert total_variation(found, scorer.joint([0, 1], 2, settings)) < ROUNDING


def test_a_draft_model_without_scores_drafts_nothing():
    drafter = TabularScorer(3, name="other")
    drafter.score = lambda prefixes, whole: drafter._table.new_full((len(prefixes), 3), float("nan"))
    scorer = TabularScorer(3, order=None, seed=5)
    lm = scripted_language_model(scorer, drafter=drafter)
    for temperature in (0.0, 1.0):
        reply = lm.generate([0], method="draft-model(draft=other)", temperature=temperature, seed=1, max_new_tokens=9)
        assert reply.stats.drafted == 0
        assert (
            reply.token_ids
            == lm.generate([0], temperature=temperature, seed=1, max_new_tokens=9, method=PLAIN).token_ids
        )


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            "draft-model(vocabulary=same)",
            "only where draft is not ngram or ngram-text or layers, and here it is draft=layers",
        ),
        (
            "spectr(vocabulary=shared)",
            "only where draft is not ngram or ngram-text or layers, and here it is draft=ngram",
        ),
    ],
)
def test_a_vocabulary_without_a_draft_model_is_refused(spec, reason):
    with pytest.raises(BadParameter, match=reason):
        scripted_language_model(story_scorer()).generate([1], method=spec, max_new_tokens=4)
