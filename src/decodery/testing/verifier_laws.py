"""The laws of verifiers, as tests to inherit.

    class TestMyVerifier(VerifierLaws):
        verifier = MyVerifier()
        siblings = (Siblings.WITH_REPLACEMENT,)

Each law is decided by exact enumeration of the draft's draws and the verifier's decisions, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from decodery.sampling.noise import Chance, Stage
from decodery.speculative.draft import ROOT, Draft, Siblings
from decodery.speculative.transport import alpha_star
from decodery.speculative.verifiers import Verdict, Verifier
from decodery.testing.enumeration import enumerate_outcomes
from decodery.testing.goodness import total_variation
from decodery.testing.scorers import Prefix, TabularScorer

EXACT = 1e-9
"""Laws computed in float64 agree to this."""
POSITION = 10
"""Where the drafts hang; any number."""
CONTINUATION = 999
"""Index of the draws that complete an output; no verifier uses it."""

TokenLaw = Callable[[Prefix], Tensor]
"""Prefix -> probabilities [vocabulary] float64 of the next token."""


@dataclass(frozen=True)
class VerifierCase:
    """A target law and a draft law over the same small vocabulary."""

    name: str
    vocabulary: int
    target: TokenLaw
    drafter: TokenLaw


def _table(vocabulary: int, seed: int, concentration: float = 1.0) -> TokenLaw:
    return cache(TabularScorer(vocabulary, order=None, seed=seed, concentration=concentration).law)


def _without(law: TokenLaw, *tokens: int) -> TokenLaw:
    """The law with some tokens made impossible."""

    @cache
    def cut(prefix: Prefix) -> Tensor:
        masses = law(prefix).clone()
        masses[list(tokens)] = 0
        return masses / masses.sum()

    return cut


def _fixed(*masses: float) -> TokenLaw:
    law = torch.tensor(masses, dtype=torch.float64)
    return lambda prefix: law / law.sum()


def verifier_cases() -> tuple[VerifierCase, ...]:
    """Laws of the usual and of the awkward kind: zeros, ties, certainty, equality, nothing in common."""
    return (
        VerifierCase("random, 3 tokens", 3, _table(3, 1), _table(3, 2)),
        VerifierCase("random, 4 tokens", 4, _table(4, 3), _table(4, 4)),
        VerifierCase("random, 5 tokens", 5, _table(5, 5), _table(5, 6)),
        VerifierCase("peaked", 4, _table(4, 7, 0.2), _table(4, 8, 0.2)),
        VerifierCase("target with zeros", 4, _without(_table(4, 9), 0, 2), _table(4, 10)),
        VerifierCase("draft with zeros", 4, _table(4, 11), _without(_table(4, 12), 1, 3)),
        VerifierCase("ties", 4, _fixed(1, 1, 1, 1), _fixed(1, 1, 1, 1)),
        VerifierCase("ties against a random draft", 3, _fixed(1, 1, 1), _table(3, 13)),
        VerifierCase("a certain target", 3, _fixed(0, 1, 0), _table(3, 14)),
        VerifierCase("a certain draft", 3, _table(3, 15), _fixed(0, 0, 1)),
        VerifierCase("equal laws", 4, _table(4, 16), _table(4, 16)),
        VerifierCase("nothing in common", 4, _without(_table(4, 17), 0, 1), _without(_table(4, 18), 2, 3)),
    )


class VerifierLaws:
    """Inherit, set `verifier` and `siblings`, and name the class Test….

    siblings: the kinds of drafts it judges. chains_only: it takes no trees. greedy: it is for greedy decoding, where the
    target's law is its likeliest token. accepts_most: it accepts a single drawn token with probability 1 - TV(p, q), the
    most that any exact verifier can. reaches_optimum: it accepts the most that any exact verifier can of any number of
    drafts.
    """

    verifier: ClassVar[Verifier]
    siblings: ClassVar[tuple[Siblings, ...]]
    chains_only: ClassVar[bool] = False
    greedy: ClassVar[bool] = False
    accepts_most: ClassVar[bool] = True
    reaches_optimum: ClassVar[bool] = False

    def test_chains_have_the_target_law(self) -> None:
        for case, kind in self._cases():
            self._assert_law(case, kind, (1,))
            self._assert_law(case, kind, (1, 1))

    def test_trees_have_the_target_law(self) -> None:
        if self.chains_only:
            return
        for case, kind in self._cases():
            self._assert_law(case, kind, (2,))
            self._assert_law(case, kind, (3,))
            if case.vocabulary <= 3:
                self._assert_law(case, kind, (2, 1))
                if kind is Siblings.DETERMINISTIC:
                    self._assert_law(case, kind, (2, 2))

    def test_an_empty_draft_is_a_plain_step(self) -> None:
        for case, _ in self._cases():
            target = self._target(case)
            laws = target(())[None].log()

            def run(chance: Chance, laws: Tensor = laws) -> int:
                verdict = self.verifier.verify(Draft((), ()), laws, chance, POSITION)
                assert verdict.path == ()
                return verdict.next_token

            if self.siblings == (Siblings.DETERMINISTIC,):
                expected = {i: p for i, p in enumerate(target(()).tolist()) if p > 0}
                assert total_variation(enumerate_outcomes(run), expected) < EXACT, case.name

    def test_acceptance_of_a_single_token(self) -> None:
        """No exact verifier accepts a token drawn from q with more than 1 - TV(p, q) = sum min(p, q)."""
        for case, kind in self._cases():
            target = self._target(case)

            def run(chance: Chance, case: VerifierCase = case, kind: Siblings = kind) -> bool:
                draft = draw_draft(case, kind, (1,), chance)
                return bool(self._judge(draft, case, chance).path)

            accepted = enumerate_outcomes(run).get(True, 0.0)
            p, q = target(()), self._draft_law(case, kind)
            most = float(torch.minimum(p, q).sum())
            assert accepted <= most + EXACT, f"{case.name}: accepts {accepted}, more than the possible {most}"
            if self.accepts_most:
                assert accepted >= most - EXACT, f"{case.name}: accepts {accepted}, not the possible {most}"

    def test_repeated_draws_that_share_a_node_have_the_target_law(self) -> None:
        if self.chains_only or Siblings.WITH_REPLACEMENT not in self.siblings:
            return
        for case in verifier_cases():
            self._assert_law(case, Siblings.WITH_REPLACEMENT, (3,), merged=True)
        # Two levels have very many outcomes; nothing of them depends on the case.
        self._assert_law(verifier_cases()[0], Siblings.WITH_REPLACEMENT, (2, 2), merged=True)

    def test_acceptance_is_at_most_the_optimum(self) -> None:
        """The transport problem bounds every exact verifier; those that claim to reach the bound do."""
        if self.greedy:
            return
        for case, kind in self._cases():
            for count in (1,) if self.chains_only else (1, 2, 3):
                accepted = self.acceptance(case, kind, count)
                p, q = case.target(()), case.drafter(())
                if kind is Siblings.DETERMINISTIC:  # here tokens may be drafted that q gives no mass
                    most = float(p[q.argsort(descending=True, stable=True)[:count]].sum())
                else:
                    most = alpha_star(p, q, count, kind)
                label = f"{case.name}, {count} drafts, {kind.value}"
                assert accepted <= most + EXACT, f"{label}: accepts {accepted}, more than the possible {most}"
                if self.reaches_optimum:
                    assert accepted >= most - EXACT, f"{label}: accepts {accepted}, not the possible {most}"

    def acceptance(self, case: VerifierCase, kind: Siblings, count: int) -> float:
        """The exact probability that one of `count` drafts of a case becomes the next token."""

        def run(chance: Chance) -> bool:
            return bool(self._judge(draw_draft(case, kind, (count,), chance), case, chance).path)

        return enumerate_outcomes(run).get(True, 0.0)

    def _cases(self) -> Iterator[tuple[VerifierCase, Siblings]]:
        for case in verifier_cases():
            for kind in self.siblings:
                yield case, kind

    def _target(self, case: VerifierCase) -> TokenLaw:
        """The law that the output must have."""
        if not self.greedy:
            return case.target

        def likeliest(prefix: Prefix) -> Tensor:
            masses = case.target(prefix)
            return torch.nn.functional.one_hot(masses.argmax(), case.vocabulary).double()

        return likeliest

    @staticmethod
    def _draft_law(case: VerifierCase, kind: Siblings) -> Tensor:
        """The law of the first node of a chain; a deterministic one is certain."""
        law = case.drafter(())
        if kind is Siblings.DETERMINISTIC:
            return torch.nn.functional.one_hot(law.argmax(), case.vocabulary).double()
        return law

    def _judge(self, draft: Draft, case: VerifierCase, chance: Chance) -> Verdict:
        """The verdict, checked to be a path from the root."""
        prefixes = [(), *(tuple(draft.tokens[i] for i in draft.path(node)) for node in range(len(draft)))]
        laws = torch.stack([case.target(prefix) for prefix in prefixes]).log()
        verdict = self.verifier.verify(draft, laws, chance, POSITION)
        above = ROOT
        for node in verdict.path:
            assert draft.parents[node] == above, f"{case.name}: the accepted nodes {verdict.path} are no path"
            above = node
        return verdict

    def _assert_law(self, case: VerifierCase, kind: Siblings, widths: tuple[int, ...], merged: bool = False) -> None:
        """The emitted tokens, completed by plain sampling to a fixed length, have the target's joint law."""
        length = len(widths) + 1
        target = self._target(case)

        def run(chance: Chance) -> Prefix:
            draft = draw_draft(case, kind, widths, chance, merged)
            verdict = self._judge(draft, case, chance)
            output = (*(draft.tokens[node] for node in verdict.path), verdict.next_token)
            while len(output) < length:
                token = chance.choose(target(output), POSITION + len(output), Stage.TARGET, CONTINUATION)
                output = (*output, token)
            return output

        expected = joint_law(target, length)
        distance = total_variation(enumerate_outcomes(run), expected)
        assert distance < EXACT, f"{case.name}, {kind.value}, widths {widths}: off the target's law by {distance:.3g}"


def joint_law(law: TokenLaw, length: int) -> dict[Prefix, float]:
    """The law of the first `length` tokens under ancestral sampling."""
    joint: dict[Prefix, float] = {(): 1.0}
    for _ in range(length):
        joint = {
            (*prefix, token): mass * chance
            for prefix, mass in joint.items()
            for token, chance in enumerate(law(prefix).tolist())
            if chance > 0
        }
    return joint


def draw_draft(
    case: VerifierCase, kind: Siblings, widths: tuple[int, ...], chance: Chance, merged: bool = False
) -> Draft:
    """A tree of a case's draft law: every node of level i has widths[i] children, drawn as `kind` says.

    merged: draws of the same token share a node.
    """
    tokens: list[int] = []
    parents: list[int] = []
    q: dict[int, Tensor] = {}
    draws: dict[int, list[int]] = {}
    level: list[tuple[int, Prefix]] = [(ROOT, ())]
    for depth, width in enumerate(widths):
        below: list[tuple[int, Prefix]] = []
        for parent, prefix in level:
            law = case.drafter(prefix)
            q[parent] = law
            drawn = _draw(law, width, kind, chance, POSITION + depth, (parent + 1) * 16)
            fresh = list(dict.fromkeys(drawn)) if merged else drawn
            if merged:
                draws[parent] = [len(tokens) + fresh.index(token) for token in drawn]
            for token in fresh:
                below.append((len(tokens), (*prefix, token)))
                tokens.append(token)
                parents.append(parent)
        level = below
    return Draft(tokens, parents, None if kind is Siblings.DETERMINISTIC else q, kind, draws=draws)


def _draw(law: Tensor, width: int, kind: Siblings, chance: Chance, position: int, index: int) -> list[int]:
    certain = {Siblings.DETERMINISTIC: width, Siblings.GREEDY: width - 1}.get(kind, 0)
    drawn: list[int] = law.argsort(descending=True, stable=True)[:certain].tolist()
    if kind is Siblings.GREEDY:
        drawn = [token for token in drawn if float(law[token]) > 0]
        law = law.clone()
        law[drawn] = 0
    for order in range(width - certain):
        if float(law.sum()) <= 0:
            break  # without replacement: nothing is left to draw
        token = chance.choose(law, position, Stage.DRAFT, index + order)
        drawn.append(token)
        if kind is Siblings.WITHOUT_REPLACEMENT:
            law = law.clone()
            law[token] = 0
    return drawn
