"""Speculative sampling with a draft model: its acceptance is known in closed form, so it is tested against that."""

from __future__ import annotations

import pytest
import torch

from decodery.engine.cost import CostCurve
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, MethodUnavailable
from decodery.speculative.draft import EMPTY, ROOT, Draft, chain
from decodery.speculative.draft_model import LONGEST, DraftModel, Length
from decodery.speculative.loop import Round
from decodery.speculative.verifiers import Verdict
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


class Asking:
    """A request, as far as a length looks at it."""

    def __init__(self, position: int = 1, tokens: int = 5) -> None:
        self.position, self.tokens = position, [0] * tokens


def _seen(length: Length, draft: Draft, accepted: int) -> None:
    length.observe(Round([1], draft, Verdict(tuple(range(accepted)), 0), [], torch.zeros(0), {}))


class TestLength:
    """How far it is drafted for where the cost curve chooses."""

    def test_a_given_length_stays(self) -> None:
        length = Length(Asking(), 5)
        _seen(length, chain([1, 2, 3]), 0)
        assert length.choose() == 5

    @pytest.mark.parametrize("share", [0.25, 1.0])
    @pytest.mark.parametrize(("drafting", "slope"), [(None, 0.3), (0.1, 0.02), (0.4, 0.02), (0.4, 0.3), (3.0, 0.3)])
    def test_it_has_the_most_expected_tokens_per_second(
        self, drafting: float | None, slope: float, share: float
    ) -> None:
        target = CostCurve((1, 2), (1.0, 1.0 + slope))
        length = Length(Asking(), None, target, None if drafting is None else CostCurve.flat(drafting), share)
        step = 0.0 if drafting is None else drafting * share
        lengths = set()
        for accepted, tried in ((2, 4), (9, 10), (1, 10), (19, 20)):
            length._accepted, length._tried = float(accepted), float(tried)
            rate = accepted / tried
            speeds = [sum(rate**i for i in range(g + 1)) / (target(1 + g) + g * step) for g in range(LONGEST + 1)]
            assert length.choose() == speeds.index(max(speeds))
            lengths.add(length.choose())
        assert len(lengths) > 1 or step > 0.5

    def test_the_curves_are_those_of_the_text_so_far(self) -> None:
        class Curve(CostCurve):
            def at(self, context: int) -> CostCurve:
                return CostCurve((1, 2), (1.0, 1.0 if context == 7 else 2.0))

        assert Length(Asking(tokens=7), None, Curve((1,), (1.0,))).choose() == LONGEST
        assert Length(Asking(tokens=8), None, Curve((1,), (1.0,))).choose() == 0

    def test_where_nothing_pays_one_is_drafted_every_sixteenth_position(self) -> None:
        dear = CostCurve((1, 2), (1.0, 2.0))
        assert [place for place in range(40) if Length(Asking(place), None, dear).choose()] == [0, 16, 32]
        assert Length(Asking(16), None, dear).choose() == 1

    @pytest.mark.parametrize(
        ("draft", "accepted", "tried"),
        [(chain([1, 2, 3]), 3, 3), (chain([1, 2, 3]), 2, 3), (chain([1, 2, 3]), 0, 1), (EMPTY, 0, 0),
         (Draft([1, 2, 3], [ROOT, ROOT, 1]), 2, 2), (Draft([1, 2, 3], [ROOT, ROOT, 1]), 1, 2)],
    )  # fmt: skip
    def test_what_was_accepted_and_the_first_that_was_not_are_counted(
        self, draft: Draft, accepted: int, tried: int
    ) -> None:
        length = Length(Asking(), None)
        assert (length._accepted, length._tried) == (2.0, 4.0)
        _seen(length, draft, accepted)
        assert (length._accepted, length._tried) == (2.0 + accepted, 4.0 + tried)


def test_it_asks_for_the_room_of_its_widest_draft() -> None:
    assert DraftModel().most_nodes() == 4
    assert DraftModel(length=6, width=3).most_nodes() == 18
    assert DraftModel(length=None).most_nodes() == LONGEST
    assert (DraftModel().chain_setting, DraftModel(width=2).chain_setting) == ("", "width=1")


def test_a_drafted_token_costs_the_layers_that_draft_it() -> None:
    """A third of the target's curve for one layer of three; all of the other's for a model of its own; nothing for counts."""
    lm = scripted_language_model(story_scorer(), drafter=story_scorer(surprise=0.5, name="other"))
    curves = {lm.network.name: CostCurve.flat(3.0), "other": CostCurve.flat(5.0)}
    lm.cost = lambda network: curves[network.name]  # type: ignore[method-assign]
    for spec, drafting, share in (("layers=1", 3.0, 1 / 3), ("draft=other", 5.0, 1.0), ("draft=ngram", None, 0.0)):
        request, method = new_request(lm, f"draft-model(length=auto, {spec})", [1, 2], Settings(seed=0))
        length = method.drafter(request)._length  # type: ignore[attr-defined]
        assert length._target is curves[lm.network.name]
        assert (None if length._drafting is None else length._drafting(1)) == drafting
        assert length._share == pytest.approx(share)
