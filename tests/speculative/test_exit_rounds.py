"""DEL round by round: which rounds are shown to the exits, how long a draft is, what ends it, and what is chosen next."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from decodery.engine.cost import CostCurve
from decodery.engine.settings import Settings
from decodery.models.forward import Forward
from decodery.models.scorer import Work
from decodery.sampling.noise import Noise, Stage
from decodery.speculative.del_.drafter import ExitDrafter, Shadows, Watch
from decodery.speculative.del_.exit_choice import PRECAUTION, ExitPrice
from decodery.speculative.del_.exits import ExitAdapters, shipped
from decodery.speculative.del_.method import DynamicExit
from decodery.speculative.draft import chain
from decodery.speculative.loop import Round
from decodery.speculative.verifiers import Verdict
from decodery.testing import scripted_language_model, story_scorer, watched
from decodery.testing.outputs import new_request


def _drafter(spec: str) -> ExitDrafter:
    request, method = new_request(scripted_language_model(story_scorer()), spec, [1, 2], Settings(seed=0))
    drafter = method.drafter(request)  # type: ignore[attr-defined]
    assert isinstance(drafter, ExitDrafter)
    return drafter


class TestWatch:
    def test_the_first_round_those_with_a_draft_and_every_eighth_plain_one_are_shown(self) -> None:
        watch = Watch(True)
        assert watch.first
        assert watch.over(0)
        assert not watch.first
        assert [place for place in range(2, 25) if watch.over(0)] == [8, 16, 24]
        assert watch.over(3)
        assert [watch.over(0) for _ in range(8)] == [False] * 7 + [True], "a draft begins the count anew"

    def test_where_nothing_is_to_be_chosen_nothing_is_shown(self) -> None:
        watch = Watch(False)
        assert not any(watch.over(drafted) for drafted in (0, 0, 3, *[0] * 10))

    def test_a_fixed_exit_and_length_leave_nothing_to_be_chosen(self) -> None:
        assert not _drafter("del(exit=1, length=2)")._watch.over(2)
        assert _drafter("del(exit=1)")._watch.over(2)
        assert _drafter("del(length=2)")._watch.over(2)


class TestLength:
    @pytest.mark.parametrize(
        ("spec", "first", "chosen", "length"),
        [
            ("del(length=5)", True, 1, 5),
            ("del(length=5)", False, 0, 5),
            ("del", True, 3, 1),
            ("del", False, 3, 18),
            ("del(max_draft=7)", False, 3, 7),
            ("del(policy=fixed)", False, 3, 3),
            ("del", False, 0, 0),
            ("del", True, 0, 0),
            ("del(bypass=False)", False, 0, 18),
        ],
    )
    def test_how_long_a_draft_may_be(self, spec: str, first: bool, chosen: int, length: int) -> None:
        drafter = _drafter(spec)
        drafter._watch.first, drafter.chosen = first, (1, chosen)
        assert drafter._length() == length

    @pytest.mark.parametrize(
        ("spec", "first", "known"),
        [
            ("del", False, True),
            ("del", True, False),
            ("del(length=4)", False, False),
            ("del(policy=fixed)", False, False),
        ],
    )
    def test_which_drafts_end_at_a_threshold(self, spec: str, first: bool, known: bool) -> None:
        drafter = _drafter(spec)
        drafter._watch.first = first
        match = torch.tensor([[True, False]] * 2)
        drafter.statistics.update(match, torch.tensor([[0.9, 0.3], [0.8, 0.1]]))
        assert [drafter._threshold(exit) for exit in (1, 2)] == (
            pytest.approx([0.6, 0.45]) if known else pytest.approx([math.nan] * 2, nan_ok=True)
        )

    def test_it_begins_with_the_first_exit_and_one_token(self) -> None:
        assert _drafter("del").chosen == (1, 1)
        assert _drafter("del(length=4)").chosen == (1, 4)
        assert _drafter("del(exit=2)").chosen == (2, 1)


class TestNext:
    """After a round in which the second exit was always right and the first one never."""

    @pytest.mark.parametrize(
        ("spec", "chosen"),
        [
            ("del(cost=layers)", (2, 17)),
            ("del(cost=layers, max_draft=5)", (2, 4)),
            ("del(cost=layers, length=3)", (2, 3)),
            ("del(cost=layers, exit=1)", (1, 0)),
            ("del(cost=layers, exit=1, bypass=False)", (1, 1)),
        ],
    )
    def test_what_drafts_next(self, spec: str, chosen: tuple[int, int]) -> None:
        drafter = _drafter(spec)
        exits = len(drafter.statistics.exits)
        drafter.shadows = Shadows(torch.tensor([[False] * 4, [True] * 4])[:exits], torch.full((exits, 4), 0.5), 0)
        draft = chain([3, 4, 5])
        drafter.observe(Round([1, 2], draft, Verdict((0, 1, 2), 7), [3, 4, 5, 7], torch.zeros(4, 24), {}))
        assert drafter.chosen == chosen
        assert drafter.statistics.counts.sum().item() == 4 * exits

    def test_a_round_that_was_not_shown_changes_nothing(self) -> None:
        drafter = _drafter("del(cost=layers)")
        drafter.chosen = (2, 9)
        drafter.observe(Round([1, 2], chain([3]), Verdict((), 7), [7], torch.zeros(2, 24), {}))
        assert drafter.chosen == (2, 9)
        assert drafter.statistics.counts.sum().item() == 0


class TestPrice:
    """Layers of 8 multiplications and a head of 40, so five layers; eight layers in all."""

    @staticmethod
    def _price(spec: str, adapters: ExitAdapters | None = None) -> ExitPrice:
        curve = CostCurve((1, 2), (2.0, 3.0))

        class Network:
            layers, vocabulary = 8, 100
            work = Work(attention=2.0, feed_forward=6.0, head=40.0)

        class Asked:
            class host:  # noqa: N801
                network = Network

                @staticmethod
                def cost(network: Any) -> CostCurve:
                    assert network is Network
                    return curve

        method = DynamicExit.__new__(DynamicExit)
        object.__setattr__(method, "cost", spec)
        return method._price(Asked, adapters, 3)  # type: ignore[arg-type]

    def test_layers_alone(self) -> None:
        assert self._price("layers") == ExitPrice(8)

    def test_heads_and_rows_too(self) -> None:
        price = self._price("measured")
        assert price == ExitPrice(8, 5.0, 5.0, 3, CostCurve((1, 2), (2.0, 3.0)))
        assert price(2, 0) == pytest.approx(13 + 5 * (1.0 + 2 * 0.5) / 8)
        drafting, verifying, looking = 2 * (2 + 5) + 2, (13 - 2) * 2.0, 5 * (1 + 8 * 0.5)
        assert price(2, 2) == pytest.approx(PRECAUTION * (drafting + verifying + looking))
        assert ExitPrice(8, 5.0, 5.0)(2, 2) == 2 * 7 + 2 + 11, "rows that cost nothing more, and no exit to look at"

    def test_where_no_exit_is_looked_at_a_plain_step_is_the_network(self) -> None:
        assert ExitPrice(8, 5.0, 5.0, 0, CostCurve((1, 2), (2.0, 3.0)))(2, 0) == 13

    def test_adapters_speak_fewer_tokens_and_cost_their_own(self) -> None:
        weights = {1: (torch.zeros(2, 3), torch.zeros(3, 2))}
        adapters = ExitAdapters(weights, torch.arange(20), "", {})
        assert self._price("measured", adapters).draft_head == pytest.approx(5 * 20 / 100 + 12 / 8)


def test_it_asks_for_the_room_of_its_longest_draft_and_one_row() -> None:
    assert DynamicExit().most_nodes() == 19
    assert DynamicExit(max_draft=4).most_nodes() == 5
    assert DynamicExit(length=40).most_nodes() == 41


class TestDrafting:
    def test_each_token_is_drawn_at_its_own_position(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[int, Stage]] = []
        choose = Noise.choose

        def spied(self: Noise, law: Any, position: int, stage: Stage, index: Any = 0, path: Any = ()) -> int:
            asked.append((position, stage))
            return choose(self, law, position, stage, index, path)

        monkeypatch.setattr(Noise, "choose", spied)
        lm = scripted_language_model(story_scorer())
        lm.generate([1, 2, 3], "del(exit=1, length=3)", max_new_tokens=4, temperature=1.0, seed=0)
        drafted = [position for position, stage in asked if stage is Stage.DRAFT]
        assert drafted[:3] == [3, 4, 5]

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_that_some_tokens_are_forbidden_ends_no_draft(self, temperature: float) -> None:
        lm = scripted_language_model(story_scorer())
        settings: dict[str, Any] = {"max_new_tokens": 12, "temperature": temperature, "seed": 0}
        bias = {3: -float("inf")}
        assert lm.generate([1, 2], "del(exit=1, length=3)", logit_bias=bias, **settings).stats.drafted >= 3

    @pytest.mark.parametrize(
        ("spec", "rows"), [("del(exit=1, length=2)", 3), ("del(length=2)", 7), ("del(length=2, context=3)", 6)]
    )
    def test_scores_of_the_prompt_are_asked_for_where_they_are_looked_at(self, spec: str, rows: int) -> None:
        """Of five tokens the last and two drafted ones, and before them as many as count."""
        lm = scripted_language_model(story_scorer())
        forwards: list[Forward] = []
        with watched(lm.network, forwards.append):
            lm.generate([1, 2, 3, 4, 5], spec, max_new_tokens=9)
        whole = next(forward for forward in forwards if forward.logit_rows())
        assert len(whole.logit_rows()) == rows

    def test_the_exits_heads_are_counted(self) -> None:
        drafter = _drafter("del")
        scorer = drafter._request.host.network
        [scores] = scorer.run([Forward(scorer.new_sequence(), [1, 2, 3], taps=(0,))])
        hidden = scores.hidden[0]
        before = dict(drafter._request.statistics.models)
        shadows = drafter._look({1: hidden, 2: hidden}, torch.zeros(len(hidden), scorer.vocabulary), 0)
        assert shadows.match.shape == (2, len(hidden))
        [name] = set(drafter._request.statistics.models) - set(before)
        assert drafter._request.statistics.models[name].rows == 2 * len(hidden)

    def test_what_a_round_leaves_of_older_ones_is_as_asked(self) -> None:
        assert _drafter("del(omega=0.5)").statistics.omega == 0.5


class TestAdapters:
    @staticmethod
    def _trained(folder: Path, fingerprint: str) -> Path:
        weights = {1: (torch.zeros(2, 3), torch.zeros(3, 2)), 2: (torch.zeros(2, 3), torch.zeros(3, 2))}
        ExitAdapters(weights, torch.arange(20), fingerprint, {}).write(folder)
        (folder / "card.json").write_text(json.dumps({"fingerprint": fingerprint}))
        return folder

    def test_those_that_ship_are_found_by_the_network_they_are_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("decodery.models.catalogue.ARTIFACTS", tmp_path)
        (tmp_path / "exit-adapters-a").mkdir()
        self._trained(tmp_path / "exit-adapters-b", "another")
        mine = self._trained(tmp_path / "exit-adapters-c", "mine")
        assert shipped("mine") == mine
        assert shipped("nobody's") is None

    def test_they_may_be_switched_off(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lm = scripted_language_model(story_scorer())
        folder = self._trained(tmp_path, lm.network.fingerprint())
        monkeypatch.setattr("decodery.speculative.del_.exits.shipped", lambda fingerprint: folder)
        for spec, bent in (("del", True), ("del(adapters=off)", False)):
            request, method = new_request(lm, spec, [1, 2], Settings(seed=0))
            assert (method._adapters(request) is not None) == bent  # type: ignore[attr-defined]
