"""Speculative sampling with a draft model: its acceptance is known in closed form, so it is tested against that."""

from __future__ import annotations

import pytest

from decodery.engine.cost import CostCurve
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, MethodUnavailable
from decodery.testing import (
    DrafterLaws,
    TabularScorer,
    enumerate_outcomes,
    scripted_language_model,
    story_scorer,
    toy_language_model,
)
from decodery.testing.outputs import finished, new_request


class TestDraftModel(DrafterLaws):
    methods = ("draft-model", "draft-model(draft=other, length=2)", "draft-model(draft=other, length=auto)")
    samples = 1000


class TestDraftTree(DrafterLaws):
    methods = ("draft-model(draft=other, length=2, width=2)",)
    samples = 1000

    def test_sampled_law_is_that_of_plain_decoding_exactly(self):
        """Two tokens instead of three: a tree of width two has very many outcomes."""
        for settings in (
            Settings(temperature=0.7, repetition_penalty=1.5, max_new_tokens=2, seed=0),
            Settings(temperature=1.0, top_p=0.8, max_new_tokens=2, seed=0),
        ):
            lm, scorer = self.tabular_host(3)
            self.assert_exact(lm, scorer, self.methods[0], settings)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("length", [1, 3, 5])
def test_a_draft_model_equal_to_the_target_is_always_right(temperature, length):
    """Nothing is refused unless the draft model's cache has come apart from the text."""
    for width in (1, 2):
        lm = scripted_language_model(story_scorer(), drafter=story_scorer(name="twin"))
        spec = f"draft-model(draft=twin, length={length}, width={width})"
        for seed in range(5):
            reply = lm.generate([1, 2, seed], method=spec, max_new_tokens=25, temperature=temperature, seed=seed)
            assert reply.stats.rounds == -(-25 // (length + 1))
            if width == 1:
                assert reply.stats.accepted == reply.stats.drafted


def test_acceptance_is_one_minus_the_distance():
    """Independent tokens: every draft is accepted with a = sum min(p, q), and a round of 3 brings (1 - a^4) / (1 - a)."""
    p, q = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
    a = 0.6
    scorer = TabularScorer(3, order=1, given=lambda prefix: p)
    drafter = TabularScorer(3, order=1, given=lambda prefix: q, name="other")
    lm = scripted_language_model(scorer, drafter=drafter)
    settings = Settings(temperature=1.0, max_new_tokens=3, seed=0)

    def first_round(chance) -> int:
        request, method = new_request(lm, "draft-model(draft=other)", [0], settings)
        request.noise = chance
        finished(request, method)
        accepted = [event.from_draft for event in request.events if hasattr(event, "from_draft")]
        return accepted.index(False)

    law = enumerate_outcomes(first_round)
    assert law[0] == pytest.approx(1 - a, abs=1e-6)
    assert law[1] == pytest.approx(a * (1 - a), abs=1e-6)
    assert law[2] == pytest.approx(a * a, abs=1e-6)
    stats = [
        lm.generate([0], method="draft-model(draft=other, length=3)", temperature=1.0, seed=i, max_new_tokens=60).stats
        for i in range(60)
    ]
    mean = sum(s.new_tokens for s in stats) / sum(s.rounds for s in stats)
    assert mean == pytest.approx((1 - a**4) / (1 - a), rel=0.05)


def test_the_work_of_each_network_is_counted_apart():
    lm = scripted_language_model(story_scorer(), drafter=story_scorer(name="other"))
    stats = lm.generate([1, 2, 3], method="draft-model(draft=other, length=2)", max_new_tokens=20).stats
    assert set(stats.models) == {"story", "other"}
    assert stats.forwards == stats.models["story"].forwards == stats.rounds
    early = lm.generate([1, 2, 3], method="draft-model(layers=1, length=2)", max_new_tokens=20).stats
    assert set(early.models) == {"story", "story (1 of 3 layers)"}
    assert early.models["story (1 of 3 layers)"].layer_rows == early.models["story (1 of 3 layers)"].rows
    assert early.forwards == early.rounds


@pytest.mark.parametrize(
    ("spec", "error", "reason"),
    [
        ("draft-model(layers=3)", MethodUnavailable, "nothing to gain"),
        ("draft-model(draft=other, layers=1)", BadParameter, "only with draft=layers"),
        ("draft-model(length=0)", BadParameter, "must lie in"),
    ],
)
def test_what_cannot_work_is_refused(spec, error, reason):
    lm = scripted_language_model(story_scorer(), drafter=story_scorer(name="other"))
    with pytest.raises(error, match=reason):
        lm.generate([1], method=spec, max_new_tokens=4)


def test_the_length_follows_the_cost():
    """A draft model as dear as the target is not used; one that costs nothing drafts far."""

    class Priced(type(scripted_language_model(story_scorer()))):
        def cost(self, network):
            return CostCurve((1,), (self.prices[network.name],))

    drafted = {}
    for price in (0.001, 2.0):
        lm = Priced(story_scorer(), None, drafter=story_scorer(name="other"))
        lm.tokenizer = scripted_language_model(story_scorer()).tokenizer
        lm.prices = {"story": 1.0, "other": price}
        drafted[price] = lm.generate([1, 2], method="draft-model(draft=other, length=auto)", max_new_tokens=40).stats
    assert drafted[0.001].acceptance_length > 4
    assert drafted[2.0].drafted <= 4, "only now and then, to keep the estimate alive"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_first_layers_of_a_network_draft(temperature):
    """On a real network: layers, masks and positions of the drafter's own cache."""
    lm = toy_language_model(seed=1, layers=3)
    for width in (1, 3):
        spec = f"draft-model(layers=1, length=3, width={width})"
        for prompt in ("hello", "a b c"):
            reply = lm.generate(prompt, method=spec, max_new_tokens=30, temperature=temperature, seed=2)
            assert len(reply.token_ids) == 30 or reply.finish_reason == "stop"
            if temperature == 0:
                plain = lm.generate(prompt, method="autoregressive", max_new_tokens=30)
                assert reply.token_ids == plain.token_ids
                assert reply.stats.accepted > 0
