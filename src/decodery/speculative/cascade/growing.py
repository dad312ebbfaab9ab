"""How the cascade's tree grows: its candidates, best first; what a round of so many nodes costs; and when to look again."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from decodery.engine.cost import CONTEXT_STEP, CostCurve
from decodery.speculative.cascade.sources import CERTAIN, Answer, Mixture, Source, Tail, level
from decodery.speculative.draft import ROOT, Draft

if TYPE_CHECKING:
    from decodery.sampling.law import Law

AHEAD = 4
"""What a further node costs is averaged over the next so many: curves have steps."""
NODE_SECONDS = 30e-6
"""What a node costs outside of the pass: to be looked up, packed, ranked and remembered."""
ROUND_SECONDS = 5e-4
"""What any draft costs outside of the pass, however small. Requests that share a pass wait for each other's."""
LONGEST_REST = 8
"""Where drafting does not pay, it is looked for again after so many rounds at the latest."""


class Candidate(NamedTuple):
    """A token that could become a node. Candidates are ordered by how likely they are reached, then by who came first.

    rarity: minus the estimated chance that the target gets there. kind: how sure the mixture was of the token. tail: the last
    tokens before it.
    """

    rarity: float
    number: int
    token: int
    parent: int
    kind: int
    tail: Tail
    depth: int

    @property
    def reached(self) -> float:
        """The estimated chance that the target gets there."""
        return -self.rarity


class Growing:
    """A tree while it grows: its nodes, and the tokens that could become the next one.

    chances: how often tokens of each level of sureness were right. law: whose steps know what must follow a node or may not;
    None: they know nothing.
    """

    def __init__(self, sources: Sequence[Source], mixture: Mixture, chances: Sequence[float], law: Law | None = None):
        self._sources, self._mixture, self._chances = sources, mixture, chances
        self._law = law if law is not None and law.guides else None
        self._paths: dict[int, tuple[int, ...]] = {ROOT: ()}
        """The tokens down to each node, where a law is asked about them."""
        self.answers: dict[int, list[Answer]] = {}
        """What the sources said after each node that was looked at."""
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._kinds: list[int] = []
        self._candidates: list[Candidate] = []
        self._found = 0

    def __len__(self) -> int:
        return len(self._tokens)

    def look(self, node: int, tail: Tail, depth: int, reached: float, floor: float) -> None:
        """Ask the sources what follows a node, which is reached with such a chance, and keep the candidates that are reached at
        least with the chance `floor`."""
        answers = self.answers[node] = []
        if self._law is not None and (forced := self._law.forced(self._paths[node])):
            self._found += 1
            certain = Candidate(-reached, self._found, forced[0], node, CERTAIN, tail, depth + 1)
            heapq.heappush(self._candidates, certain)
            return
        for source in self._sources:
            source.answers(tail, answers)
        chances, candidates = self._chances, self._candidates
        likely = self._mixture.law(answers, floor / (4 * reached))
        for token, own in likely if self._law is None else self._lawful(self._law, node, likely):
            kind = level(own)
            chance = reached * chances[kind]
            if chance >= floor:
                self._found += 1
                heapq.heappush(candidates, Candidate(-chance, self._found, token, node, kind, tail, depth + 1))

    def _lawful(self, law: Law, node: int, likely: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """Those of these tokens and chances that may follow a node; others leave them their chances."""
        path = self._paths[node]
        kept = [(token, chance) for token, chance in likely if law.may_follow(token, path)]
        rest = 1.0 - sum(chance for _, chance in likely) + sum(chance for _, chance in kept)
        return [(token, min(1.0, chance / rest)) for token, chance in kept]

    def best(self) -> Candidate | None:
        """Take out the candidate that is the likeliest to be reached; None where there is none left."""
        return heapq.heappop(self._candidates) if self._candidates else None

    def add(self, candidate: Candidate) -> int:
        """Make a candidate a node; its index."""
        self._tokens.append(candidate.token)
        self._parents.append(candidate.parent)
        self._kinds.append(candidate.kind)
        if self._law is not None:
            self._paths[len(self._tokens) - 1] = (*self._paths[candidate.parent], candidate.token)
        return len(self._tokens) - 1

    def draft(self) -> Draft:
        """The tree as it stands."""
        return Draft(self._tokens, self._parents, kinds=self._kinds)


class Price(NamedTuple):
    """What a round costs.

    seconds: by the number of nodes, of each request where several share the pass. plain: of a step of them without drafts.
    """

    seconds: Sequence[float]
    plain: float

    def of_a_node(self, nodes: int) -> float:
        """What a node more costs after so many, as a share of the round."""
        return (self.seconds[nodes + AHEAD] - self.seconds[nodes]) / (AHEAD * self.seconds[nodes])

    def pays(self, nodes: int, expected: float) -> bool:
        """Whether a round of so many nodes and expected tokens brings more tokens per second than a plain step."""
        return expected * self.plain > self.seconds[nodes]


class Prices:
    """Prices by company and context, of up to `most` nodes. cost: of passes; None: nodes cost nothing."""

    def __init__(self, cost: CostCurve | None, most: int):
        self._cost, self._most = cost, most
        self._free = Price([1.0] * (most + AHEAD + 1), 1.0)
        self._known: dict[tuple[int, int], Price] = {}

    def at(self, company: int, context: int) -> Price:
        """Where `company` requests share the pass and this one has `context` tokens."""
        if self._cost is None:
            return self._free
        key = (company, -(-context // CONTEXT_STEP))
        if key not in self._known:
            cost = self._cost.at(context)
            sizes = range(self._most + AHEAD + 1)
            seconds = [cost(company * (1 + n)) + company * (ROUND_SECONDS + n * NODE_SECONDS) for n in sizes]
            self._known[key] = Price(seconds, cost(company))
        return self._known[key]


class Rest:
    """Where drafting does not pay it is looked for ever more rarely: after 1, 3, 7 and then every 8 rounds."""

    def __init__(self) -> None:
        self._longest = self._left = 0

    def over(self) -> bool:
        """Begin a round: whether it is time to look."""
        if self._left:
            self._left -= 1
            return False
        return True

    def learn(self, pays: bool) -> None:
        """What a look has found."""
        self._longest = 0 if pays else min(LONGEST_REST, 2 * self._longest + 1)
        self._left = self._longest

    @property
    def lasts(self) -> bool:
        """Whether the next round will not look."""
        return self._left > 0
