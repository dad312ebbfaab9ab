"""The greedy draft tree with its own verifier, and the other ways of drawing, through the whole engine."""

from __future__ import annotations

import pytest

from decodery.engine.events import Drafted
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter
from decodery.speculative.draft import Siblings
from decodery.speculative.draft_laws.multi_draft import greedy_top
from decodery.speculative.transport import alpha_star
from decodery.testing import (
    DrafterLaws,
    TabularScorer,
    exact_outputs,
    scripted_language_model,
    story_scorer,
    total_variation,
    watched,
)

NAME = "optimal-multi-draft"


class TestOptimalMultiDraft(DrafterLaws):
    methods = (f"{NAME}(widths=2x2, draft=other)", f"{NAME}(least=0.1)")
    samples = 600


class TestOtherDraws(DrafterLaws):
    methods = (
        f"{NAME}(widths=2x1, draft=other, mode=without-replacement)",
        f"{NAME}(widths=2x2, draft=other, mode=with-replacement)",
    )
    samples = 400

    def test_sampled_law_is_that_of_plain_decoding_exactly(self):
        """Two tokens instead of three: the draws have very many outcomes."""
        for method in self.methods:
            settings = Settings(temperature=0.7, repetition_penalty=1.5, max_new_tokens=2, seed=0)
            lm, scorer = self.tabular_host(3)
            self.assert_exact(lm, scorer, method, settings)


@pytest.mark.parametrize("verifier", ["auto", "k-seq", "recursive-rejection", "greedy-set", "transport-plan"])
@pytest.mark.parametrize("mode", ["greedy", "with-replacement", "without-replacement"])
def test_every_pairing_is_exact_or_refused(mode, verifier):
    scorer = TabularScorer(4, order=None, seed=5)
    lm = scripted_language_model(scorer, drafter=scorer.blurred(0.8))
    settings = Settings(temperature=1.0, max_new_tokens=2, seed=0)
    fits = {
        "greedy": {"auto", "greedy-set", "transport-plan"},
        "with-replacement": {"auto", "k-seq", "recursive-rejection", "transport-plan"},
        "without-replacement": {"auto", "recursive-rejection", "transport-plan"},
    }
    spec = f"{NAME}(widths=2, draft=other, mode={mode}, verifier={verifier})"
    if verifier in fits[mode]:
        found = exact_outputs(lm, spec, [0, 1], settings)
        assert total_variation(found, scorer.joint([0, 1], 2, settings)) < 1e-6
        return
    forwards = []
    with watched(lm.network, forwards.append), pytest.raises(BadParameter, match="is not exact here") as refused:
        lm.generate([0, 1], method=spec, temperature=1.0, max_new_tokens=2)
    assert not forwards
    assert "; use " in str(refused.value)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize(
    ("mode", "kind"), [("greedy", Siblings.GREEDY), ("without-replacement", Siblings.WITHOUT_REPLACEMENT)]
)
def test_measured_acceptance(mode, kind, width):
    """Of independent tokens: that of the closed form for the greedy set, not above the optimum for distinct draws."""
    p, q = [0.35, 0.05, 0.25, 0.2, 0.15], [0.1, 0.4, 0.2, 0.25, 0.05]
    scorer = TabularScorer(5, order=1, given=lambda prefix: p)
    lm = scripted_language_model(scorer, drafter=TabularScorer(5, order=1, given=lambda prefix: q, name="other"))
    spec = f"{NAME}(widths={width}, draft=other, mode={mode})"
    # Two tokens are one round of one level, and then perhaps a plain step.
    replies = lm.generate([0], method=spec, temperature=1.0, seed=1, max_new_tokens=2, n=1000)
    share = sum(reply.stats.accepted for reply in replies) / len(replies)
    best = alpha_star(p, q, width, kind)
    error = (best * (1 - best) / len(replies)) ** 0.5
    if kind is Siblings.GREEDY:
        assert share == pytest.approx(best, abs=3 * error)
    else:
        assert share <= best + 3 * error


def test_a_wider_tree_accepts_more():
    scorer = TabularScorer(12, order=2, seed=1, concentration=0.5)
    efficiency = {}
    for widths in ("1x1", "2x1", "3x2"):
        lm = scripted_language_model(scorer, drafter=scorer.blurred(0.4))
        stats = [
            lm.generate(
                [1, 2], method=f"{NAME}(widths={widths}, draft=other)", temperature=1.0, max_new_tokens=40, seed=seed
            ).stats
            for seed in range(25)
        ]
        efficiency[widths] = sum(s.new_tokens for s in stats) / sum(s.rounds for s in stats)
    assert efficiency["2x1"] > efficiency["1x1"] + 0.1  # standard errors are about 0.04
    assert efficiency["3x2"] > efficiency["2x1"] + 0.1


def test_least_probability_prunes_the_tree_and_keeps_the_law():
    scorer = TabularScorer(3, order=None, seed=5)
    lm = scripted_language_model(scorer, drafter=scorer.blurred(0.8))
    drafted = {}
    for least in (0.0, 0.3):
        spec = f"{NAME}(widths=2x2, draft=other, least={least})"
        settings = Settings(temperature=1.0, max_new_tokens=3, seed=0)
        found = exact_outputs(lm, spec, [0, 1], settings)
        assert total_variation(found, scorer.joint([0, 1], 3, settings)) < 1e-6
        stats = lm.generate([0, 1], method=spec, temperature=1.0, seed=1, max_new_tokens=60).stats
        drafted[least] = stats.drafted / stats.rounds
    assert drafted[0.3] < drafted[0.0]


def test_least_is_of_the_whole_path():
    """Each token has a chance of 0.6 or 0.4: alone above the bound, as a path of two below it."""
    scorer = TabularScorer(2, order=1, given=lambda prefix: [0.6, 0.4])
    lm = scripted_language_model(
        scorer, drafter=TabularScorer(2, order=1, given=lambda prefix: [0.6, 0.4], name="other")
    )
    deepest = {}
    for least in (0.2, 0.3, 0.5):
        spec = f"{NAME}(widths=1x1x1, draft=other, least={least})"
        events = lm.generate([0], method=spec, temperature=1.0, seed=1, max_new_tokens=200).events
        deepest[least] = max(len(event.tokens) for event in events if isinstance(event, Drafted))
    assert deepest == {0.2: 3, 0.3: 3, 0.5: 2}  # 0.36 is the likeliest path of two, 0.6 that of one


def test_ties_go_to_the_lowest_id():
    import torch

    law = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.3, 0.0])
    assert greedy_top(law, 2) == [4, 1]
    assert greedy_top(law, 0) == []
    assert greedy_top(law, 6) == [4, 1, 2, 3, 0], "what has no mass is never drafted"


@pytest.mark.parametrize("widths", ["", "3x", "0", "3x0", "a", "65", "x3", "3,2"])
def test_unreadable_widths_are_refused(widths):
    lm = scripted_language_model(story_scorer())
    with pytest.raises(BadParameter, match="with an x between"):
        lm.generate([1], method=f"{NAME}(widths={widths!r})", max_new_tokens=4)


def test_widths_may_be_a_number():
    lm = scripted_language_model(story_scorer(), drafter=story_scorer(surprise=0.5, name="other"))
    reply = lm.generate([1], method=f"{NAME}(widths=3, draft=other)", max_new_tokens=12)
    assert reply.stats.drafted <= 3 * reply.stats.rounds


def test_what_it_asks_for() -> None:
    assert as_method(f"{NAME}(widths=3x2x1)").most_nodes() == 3 + 6 + 6
    assert as_method(f"{NAME}(widths=1x1)").chain_setting == as_method(f"{NAME}(widths=1)").chain_setting == ""
    assert as_method(f"{NAME}(widths=1x2)").chain_setting == "widths=1x1x1"
