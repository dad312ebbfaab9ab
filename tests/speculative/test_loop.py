"""The loop that all drafters share, with drafters whose fate is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from decodery.engine.cost import CostCurve
from decodery.engine.events import Drafted, Token
from decodery.engine.settings import Settings
from decodery.models.forward import Attend, Forward, Ranking, Tree
from decodery.models.owner import Stability
from decodery.speculative.draft import EMPTY, ROOT, Draft, chain
from decodery.speculative.loop import USUAL_NODES, Beginning, Drafter, ProcessedLaws, Round
from decodery.speculative.prompt_lookup import PromptLookup
from decodery.testing import (
    DrafterLaws,
    adversarial_draft,
    drafting_method,
    oracle_draft,
    random_draft,
    scripted_language_model,
    story_scorer,
    watched,
)
from decodery.testing.outputs import finished, new_request


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


# What the loop makes of a draft


TREE = Draft([21, 22, 23, 21], [ROOT, ROOT, 1, 2], kinds=["a", "b", "b", "b"])


def _method(draft: Draft, adaptive: bool = False, rounds: list[Round] | None = None, **of_the_drafter: Any) -> Any:
    """A method that always drafts the same; `rounds` gets what its drafter observes."""

    class Same(Drafter):
        def propose(self, tokens: Any, depth: int) -> Draft:
            return draft

        def observe(self, round: Round) -> None:
            if rounds is not None:
                rounds.append(round)

    for name, value in of_the_drafter.items():
        setattr(Same, name, value)
    inner = drafting_method("same", lambda request, tokens, depth: draft)

    @dataclass(frozen=True)
    class Method(type(inner)):  # type: ignore[misc]
        name: ClassVar[str] = "same"

        @property
        def adaptive(self) -> bool:
            return adaptive

        def drafter(self, request: Any) -> Drafter:
            return Same()

    return Method()


def _asked(lm: Any, method: Any, prompt: list[int], **settings: Any) -> list[Forward]:
    forwards: list[Forward] = []
    with watched(lm.network, forwards.append):
        lm.generate(prompt, method, **{"max_new_tokens": 4, **settings})
    return forwards


def _shape(forward: Forward) -> tuple[int, bool]:
    """Rows of a forward, and whether they are a tree."""
    return forward.count, isinstance(forward.attend, Tree)


def test_a_tree_is_not_verified_below_a_long_prompt() -> None:
    """All the prompt's rows would need a mask. A chain needs none."""
    for length, rows in ((31, (35, True)), (32, (32, False)), (40, (40, False))):
        first, second, *_ = _asked(
            scripted_language_model(story_scorer()), _method(TREE), [1] * length, max_new_tokens=6
        )
        assert _shape(first) == rows
        assert _shape(second) == (5, True)
    first, *_ = _asked(scripted_language_model(story_scorer()), _method(chain([21, 22])), [1] * 40)
    assert _shape(first) == (42, False)
    assert first.attend is Attend.CAUSAL


def test_where_rows_of_large_passes_differ_a_long_prompt_is_scored_alone() -> None:
    for length, rows in ((7, 10), (8, 8), (9, 9)):
        lm = scripted_language_model(story_scorer())
        lm.network.stability = Stability(rows=8, columns=1)
        first, *_ = _asked(lm, _method(chain([21, 22, 23])), [1] * length)
        assert first.count == rows


def test_and_drafts_are_no_larger_than_its_rows() -> None:
    lm = scripted_language_model(story_scorer())
    lm.network.stability = Stability(rows=8, columns=1)
    draft = chain([21, 22, 23, 21, 22, 23, 21, 22, 23], ["a"] * 9)
    curve = CostCurve.flat()
    lm.cost = lambda network: curve
    forwards = _asked(lm, _method(draft, adaptive=True), [1, 2, 3], max_new_tokens=20)
    assert [forward.count for forward in forwards[:2]] == [8, 8]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_network_that_scores_chains_alone_gets_the_best_path(temperature: float) -> None:
    lm = scripted_language_model(story_scorer())
    lm.network.chains_only = True
    first, *_ = _asked(lm, _method(TREE), [1, 2], temperature=temperature, seed=0, max_new_tokens=6)
    assert _shape(first) == (5, False)
    assert list(first.tokens) == [1, 2, 22, 23, 21]


def test_positions_of_nodes_are_those_of_their_depth() -> None:
    first, second, *_ = _asked(scripted_language_model(story_scorer()), _method(TREE), [1, 2], max_new_tokens=6)
    assert list(first.positions) == [0, 1, 2, 2, 3, 4]
    assert list(second.positions) == [2, 3, 3, 4, 5]


def test_what_a_round_tells() -> None:
    """Rows of scores and hidden rows of the last pending token and of each node, also in the first round, behind a prompt."""
    rounds: list[Round] = []
    lm = scripted_language_model(story_scorer())
    scorer = story_scorer()
    request, method = new_request(lm, _method(TREE, rounds=rounds), [1, 2, 3], Settings(max_new_tokens=8, seed=0))
    finished(request, method)
    text = [1, 2, 3]
    for round in rounds:
        assert list(round.tokens) == text
        paths = [[], *([round.draft.tokens[i] for i in round.draft.path(node)] for node in range(len(round.draft)))]
        for row, path in zip(round.logits, paths, strict=True):
            assert torch.equal(row, scorer.score([(*text, *path)], True)[0])
        text += round.emitted
        assert len(round.emitted) == len(round.verdict.path) + 1
    assert text[3:] == list(request.new_tokens)


def _ranks(**settings: Any) -> set[int]:
    forwards = _asked(
        scripted_language_model(story_scorer()), _method(TREE, rank=4), [1, 2], **{"max_new_tokens": 3, **settings}
    )
    return {forward.rank for forward in forwards}


def test_the_likeliest_tokens_are_enough_only_for_greedy_requests_that_look_at_no_more() -> None:
    assert _ranks() == {4}
    assert _ranks(temperature=1.0, seed=0) == {0}
    assert _ranks(repetition_penalty=1.2) == {0}
    assert _ranks(logprobs=2) == {0}


def test_a_request_with_room_for_one_token_drafts_nothing() -> None:
    for left, rows in ((1, [2]), (2, [3]), (3, [4, 2])):
        asked: list[int] = []

        def propose(request: Any, tokens: Any, depth: int, asked: list[int] = asked) -> Draft:
            asked.append(depth)
            return chain([21, 22, 23])

        forwards = _asked(
            scripted_language_model(story_scorer()), drafting_method("deep", propose), [1, 2], max_new_tokens=left
        )
        assert forwards[0].count == rows[0]
        assert asked[:1] == ([left - 1] if left > 1 else [])


def test_drafts_that_were_not_drawn_count_their_acceptance_in_the_session() -> None:
    """So a second request knows that they are never right."""
    wrong = chain([23, 23], ["a", "a"])
    lm = scripted_language_model(story_scorer())
    curve = CostCurve((1, 2), (1.0, 1.15))
    lm.cost = lambda network: curve
    first, second = (lm.generate([1, 2], _method(wrong, adaptive=True), max_new_tokens=20).stats for _ in range(2))
    assert first.drafted > second.drafted == 0


class TestProcessedLaws:
    def test_of_a_ranking_only_the_first_is_asked_for(self) -> None:
        request, _ = new_request(scripted_language_model(story_scorer()), "autoregressive", [1, 2], Settings(seed=0))
        laws = ProcessedLaws(request, EMPTY, torch.zeros(0), Ranking([[7, 3], [4, 9]], [[0.9, 0.1], [0.5, 0.5]]))
        assert [laws.likeliest(row) for row in (0, 1)] == [7, 4]

    @pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 0.0}])
    def test_a_row_is_the_law_after_its_own_path(self, settings: dict[str, Any]) -> None:
        """Where the law looks at the text: node 2 hangs on node 1, whose token counts for it, and that of node 0 does not."""
        lm = scripted_language_model(story_scorer())
        given = Settings(repetition_penalty=2.0, presence_penalty=0.5, seed=0, **settings)
        request, _ = new_request(lm, "autoregressive", [1, 2], given)
        logits = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
        laws = ProcessedLaws(request, TREE, logits)
        for row, path in enumerate(([], [21], [22], [22, 23], [22, 23, 21])):
            expected = request.law.scores(logits[row], path)
            if not request.law.greedy:
                expected = request.law.log_probabilities(logits[row], path)
                assert torch.equal(laws.probabilities(row), request.law.probabilities(logits[row], path))
            assert torch.equal(laws[row], expected)
            assert laws.likeliest(row) == int(expected.argmax())


def test_a_method_sets_aside_its_drafts_rows() -> None:
    lm = scripted_language_model(story_scorer())
    request, plain = new_request(lm, "autoregressive", [1, 2, 3], Settings(max_new_tokens=5, seed=0))
    [(_, rows)] = plain.caches(request)
    assert [kept for _, kept in PromptLookup(length=7).caches(request)] == [rows + 7]
    assert [kept for _, kept in _method(TREE).caches(request)] == [rows + USUAL_NODES]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_log_probabilities_of_drafted_tokens_are_those_of_plain_decoding(temperature: float) -> None:
    lm = scripted_language_model(story_scorer())
    settings: dict[str, Any] = {"max_new_tokens": 12, "temperature": temperature, "seed": 4, "logprobs": 3}
    plain = lm.generate([1, 2, 3], "autoregressive", **settings)
    drafted = lm.generate([1, 2, 3], oracle_draft(3), **settings)
    assert drafted.stats.accepted > 0
    assert drafted.logprobs == plain.logprobs


def test_nothing_is_drafted_once_a_request_is_over() -> None:
    asked: list[int] = []

    def propose(request: Any, tokens: Any, depth: int) -> Draft:
        asked.append(len(tokens))
        return chain([21])

    lm = scripted_language_model(story_scorer())
    end = lm.generate([1, 2], "autoregressive", max_new_tokens=3).token_ids[-1]
    reply = lm.generate([1, 2], drafting_method("asked", propose), max_new_tokens=20, stop_token_ids=[end])
    assert reply.finish_reason == "stop"
    assert len(asked) == reply.stats.rounds
