"""Drafts heed a constraint: what must come is drafted, what may not come is left out, and the text is plain decoding's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from letter_constraints import over_letters

from decodery.engine.request import Request
from decodery.engine.scheduler import Scheduler
from decodery.engine.settings import Settings
from decodery.engine.task import Task
from decodery.sampling.law import Law, LawSettings
from decodery.speculative.budget import lawful
from decodery.speculative.cascade.growing import Candidate, Growing
from decodery.speculative.cascade.method import CascadeDrafter
from decodery.speculative.cascade.sources import CERTAIN, Answer, Mixture, Sureness, Tail, level
from decodery.speculative.draft import ROOT, Draft, Siblings, chain
from decodery.speculative.loop import Drafter, Round, speculate
from decodery.speculative.verifiers import Verdict, verifier_for
from decodery.testing import scripted_language_model
from decodery.testing.scorers import TabularScorer

END = 7
PAIR = ("recycled", 2)


class Said:
    """A source that says the same after every token."""

    def __init__(self, shares: dict[int, float]):
        self._shares = shares

    def answers(self, tail: Tail, into: list[Answer]) -> None:
        into.append((PAIR, list(self._shares), tuple(self._shares.values())))


def law(pattern: str, output: Sequence[int] = ()) -> Law:
    """Over the signs A to H; H ends."""
    found = Law(LawSettings(structured_outputs=over_letters(8, regex=pattern)), [3], [END])
    for token in output:
        found.observe(token)
    return found


def test_a_law_knows_what_must_and_may_follow_a_path() -> None:
    found = law("A(BC|D)E*", [0])
    assert [list(found.forced(path)) for path in ((), (1,), (3,))] == [[], [2], []]
    assert [token for token in range(8) if found.may_follow(token)] == [1, 3]
    assert [token for token in range(8) if found.may_follow(token, (1,))] == [2]
    assert [token for token in range(8) if found.may_follow(token, (3,))] == [4, END]
    assert not found.may_follow(4, (1, 1)), "behind what breaks it nothing follows"


def test_steps_that_know_nothing_are_not_asked() -> None:
    plain = Law(LawSettings(temperature=1.0, repetition_penalty=1.2), [3], [END])
    assert (plain.guides, plain.forced(), plain.may_follow(5)) == ([], (), True)


def test_nodes_that_may_not_follow_go_with_what_hangs_on_them() -> None:
    draft = Draft([1, 3, 4, 2, 4, 4], [ROOT, ROOT, 0, 0, 1, 2], kinds=list("abcdef"))
    kept = lawful(draft, law("A(BC|D)E*", [0]).may_follow)
    assert (kept.tokens, kept.parents, kept.kinds) == ([1, 3, 2, 4], [ROOT, ROOT, 0, 1], ["a", "b", "d", "e"])


class TestGrowing:
    def grown(self, pattern: str, shares: dict[int, float]) -> Growing:
        return Growing([Said(shares)], Mixture(), [2 ** (-place / 3) for place in range(20)], law(pattern))

    def test_what_must_come_is_certain_and_nothing_else_is_asked(self) -> None:
        growing = self.grown("AB[CD]", {5: 0.9})
        growing.look(ROOT, (3,), 2, 0.5, 0.01)
        best = growing.best()
        assert best is not None
        assert (best.token, best.reached, best.kind, best.depth) == (0, 0.5, CERTAIN, 3)
        assert (growing.best(), growing.answers) == (None, {ROOT: []})

    def test_the_path_above_counts(self) -> None:
        growing = self.grown("[AB](CD|E)", {})
        growing.look(ROOT, (3,), 0, 1.0, 0.01)
        assert growing.best() is None
        for token, forced in ((0, None), (2, 3)):
            parent = len(growing) - 1
            node = growing.add(Candidate(-1.0, 1, token, parent, 0, (3,), 1))
            growing.look(node, (3,), 1, 1.0, 0.01)
            best = growing.best()
            assert (None if best is None else best.token) == forced

    def test_what_may_not_come_leaves_its_chance_to_the_others(self) -> None:
        growing = self.grown("[AB]C", {0: 0.2, 5: 0.6, 1: 0.1})
        growing.look(ROOT, (3,), 0, 1.0, 0.01)
        found = [growing.best(), growing.best()]
        assert [best.token for best in found if best] == [0, 1]
        assert [best.kind for best in found if best] == [level(0.2 / 0.4), level(0.1 / 0.4)]
        assert growing.best() is None

    def test_without_a_constraint_nobody_is_asked(self) -> None:
        growing = Growing([Said({5: 0.9})], Mixture(), [1.0] * 20, Law(LawSettings(), [3], [END]))
        growing.look(ROOT, (3,), 0, 1.0, 0.01)
        assert [growing.best() is not None, growing.best()] == [True, None]
        assert growing.answers == {ROOT: [(PAIR, [5], (0.9,))]}


def cascade(pattern: str, source: Said) -> CascadeDrafter:
    lm = scripted_language_model(TabularScorer(8), stop_ids=(END,))
    settings = Settings(seed=0, max_new_tokens=20, structured_outputs=over_letters(8, regex=pattern))
    request = Request(lm, [0, 3], settings)
    return CascadeDrafter(request, None, [source], Mixture(), Sureness(), 8, 8)


def test_the_cascade_drafts_on_behind_what_must_come() -> None:
    drafter = cascade("ABC[DE]F", Said({3: 0.9, 6: 0.05}))
    draft = drafter.propose([0, 3], 8)
    assert [draft.tokens[node] for node in draft.path(len(draft) - 1)] == [0, 1, 2, 3, 5]
    assert draft.is_chain
    assert list(draft.kinds)[:3] == [CERTAIN] * 3
    drafter.observe(Round([0, 3], draft, _verdict(), [0, 1, 2, 3, 5, END], torch.zeros(6, 8), {}))
    assert len(drafter._right.chances()) == 20, "what is certain says nothing of how often sources are right"


def _verdict() -> Any:
    return Verdict((0, 1, 2, 3, 4), END)


def test_what_must_come_is_drafted_in_a_rest_too() -> None:
    resting = cascade("ABC", Said({}))
    for drafter, drafted in ((resting, 3), (cascade("[AB]C", Said({0: 0.9})), 0)):
        drafter._rest.learn(False)
        assert drafter._rest.lasts
        assert len(drafter.propose([0, 3], 8)) == drafted


class Fixed(Drafter):
    """Drafts the same always, and remembers what became of it."""

    def __init__(self, draft: Draft):
        self._draft, self.seen = draft, []  # type: ignore[var-annotated]

    def propose(self, tokens: Sequence[int], depth: int) -> Draft:
        return self._draft

    def observe(self, round: Round) -> None:
        self.seen.append(list(round.draft.tokens))


@pytest.mark.parametrize("guided", [False, True])
def test_drafts_of_others_are_put_right(guided: bool) -> None:
    drafter = Fixed(chain([1, 4, 4]))
    drafter.guided = guided
    lm = scripted_language_model(TabularScorer(8), stop_ids=(END,))
    settings = Settings(seed=0, max_new_tokens=6, structured_outputs=over_letters(8, regex="[AB][CD]E[AB]*"))
    request = Request(lm, [0, 3], settings)
    scheduler = Scheduler()
    scheduler.start(Task(speculate(request, drafter, "fixed", False, verifier_for)))
    scheduler.run()
    assert request.error is None
    assert drafter.seen[0] == ([1, 4, 4] if guided else [1])
    assert ([4] in drafter.seen) is not guided, "E must come, which is drafted for those that do not heed it"


def test_what_was_drawn_at_random_stays() -> None:
    """A node that cannot be accepted must be rejected: to leave it out would change what is drawn instead."""
    q = {ROOT: torch.full((8,), 1 / 8)}
    drafter = Fixed(Draft([5], [ROOT], q, Siblings.WITH_REPLACEMENT))
    lm = scripted_language_model(TabularScorer(8), stop_ids=(END,))
    settings = Settings(
        seed=0, max_new_tokens=3, temperature=1.0, structured_outputs=over_letters(8, regex="[AB][AB][AB]")
    )
    scheduler = Scheduler()
    scheduler.start(Task(speculate(Request(lm, [0, 3], settings), drafter, "fixed", False, verifier_for)))
    scheduler.run()
    assert drafter.seen[0] == [5]


@pytest.mark.parametrize("method", ["cascade", "prompt-lookup", "suffix-automaton"])
def test_the_text_is_that_of_plain_decoding(method: str) -> None:
    pattern = "(ab[cd]{1,3}ef){3}"
    texts, forwards = [], []
    for name in ("autoregressive", method):
        lm = scripted_language_model(TabularScorer(8), stop_ids=(END,))
        reply: Any = lm.generate([0, 3], name, structured_outputs={"regex": pattern}, seed=1, max_new_tokens=30)
        texts.append(reply.text)
        forwards.append(reply.stats.forwards)
    assert texts[0] == texts[1]
    assert re.fullmatch(pattern, texts[0].removesuffix("h"))
    assert forwards[1] < forwards[0]
