"""What the methods that verify several drafts at once share: which verifier may judge them, and how they are drawn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.engine.method import parameter
from decodery.errors import BadParameter
from decodery.models.forward import Forward
from decodery.speculative.draft import EMPTY, ROOT, Draft, Siblings
from decodery.speculative.draft_laws.base import DraftLaws
from decodery.speculative.draft_laws.growth import TreeGrowth, draw_distinct, draw_independent, likeliest
from decodery.speculative.draft_laws.laws import DraftLawMethod
from decodery.speculative.loop import Drafter, Round

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.speculative.verifiers import Verifier

AUTO = "auto"


@dataclass(frozen=True)
class Pairing:
    """A verifier by name: the ways of drawing siblings that it is exact for, and what it takes for granted."""

    siblings: tuple[Siblings, ...]
    assumes: str


VERIFIERS = {
    "k-seq": Pairing((Siblings.WITH_REPLACEMENT,), "it assumes independent draws from the draft law"),
    "recursive-rejection": Pairing(
        (Siblings.WITH_REPLACEMENT, Siblings.WITHOUT_REPLACEMENT), "it assumes that every draft was drawn"
    ),
    "greedy-set": Pairing((Siblings.GREEDY,), "it assumes that all drafts but the last are certain"),
    "transport-plan": Pairing(
        (Siblings.WITH_REPLACEMENT, Siblings.WITHOUT_REPLACEMENT, Siblings.GREEDY),
        "it solves a linear program over all sets of drafts",
    ),
}
"""Verifiers of drafts with draft laws, by the names that parameters use."""
BEST = {
    Siblings.WITH_REPLACEMENT: "k-seq",
    Siblings.WITHOUT_REPLACEMENT: "recursive-rejection",
    Siblings.GREEDY: "greedy-set",
}
"""The verifier that "auto" means."""
NAMES = (AUTO, *VERIFIERS)


def check_pairing(method: str, verifier: str, siblings: Siblings, vocabulary: int) -> None:
    """Raise BadParameter where a verifier is not exact for drafts drawn like this, or not made for the vocabulary."""
    if verifier == AUTO:
        return
    pairing = VERIFIERS[verifier]
    if siblings not in pairing.siblings:
        fitting = [name for name, other in VERIFIERS.items() if siblings in other.siblings]
        drawn = "form the greedy set" if siblings is Siblings.GREEDY else f"are drawn {siblings.value}"
        raise BadParameter(
            f"{method}: verifier={verifier} is not exact here, since {pairing.assumes} and the drafts {drawn}; "
            f"use {' or '.join(fitting)}."
        )
    from decodery.speculative.verifiers.optimal_multi_draft import LARGEST_VOCABULARY

    if verifier == "transport-plan" and vocabulary > LARGEST_VOCABULARY:
        raise BadParameter(
            f"{method}: verifier=transport-plan is for vocabularies of up to {LARGEST_VOCABULARY} tokens, not {vocabulary}, "
            f"since {pairing.assumes}."
        )


def verifier_named(name: str, siblings: Siblings) -> Verifier:
    """The verifier of a name in `VERIFIERS`, or for "auto" the one that suits the drafts."""
    from decodery.speculative.verifiers import GreedySetMatch, KSeq, TransportPlan, TreeRejection

    name = BEST[siblings] if name == AUTO else name
    verifiers: dict[str, Callable[[], Verifier]] = {
        "k-seq": KSeq,
        "recursive-rejection": TreeRejection,
        "greedy-set": GreedySetMatch,
        "transport-plan": TransportPlan,
    }
    return verifiers[name]()


@dataclass(frozen=True)
class MultiDraftMethod(DraftLawMethod):
    """Base of the methods that draw several drafts per position and let the user choose among their verifiers."""

    verifier: str = parameter(AUTO, "who judges the drafts; auto: what suits the way they are drawn", choices=NAMES)

    @property
    @abstractmethod
    def siblings(self) -> Siblings:
        """How the drafts of a position are drawn."""

    def admit(self, request: Request) -> None:
        check_pairing(self.name, self.verifier, self.siblings, request.host.network.vocabulary)
        super().admit(request)

    def judge(self, draft: Draft, greedy: bool) -> Verifier:
        if greedy or draft.siblings is Siblings.DETERMINISTIC:
            return super().judge(draft, greedy)
        return verifier_named(self.verifier, self.siblings)


Counts = Callable[[int, int], int]
"""(level from 0, how many drafts run through the node) -> how many children are drawn for a node."""


class MultiDrafter(Drafter):
    """Draws a tree of several drafts per node, level by level.

    counts: see `Counts`. levels: most levels. least: nodes whose draft probability, as a product along the path, is below
    this get no children; whether a node has children may depend on the way to it, but not on what its children would be.
    """

    def __init__(
        self, request: Request, laws: DraftLaws, siblings: Siblings, counts: Counts, levels: int, least: float = 0.0
    ):
        self._request, self._laws, self._siblings = request, laws, siblings
        self._counts, self._levels, self._least = counts, levels, least

    def propose(self, tokens: Sequence[int], depth: int) -> Draft | Generator[Forward, Scores, Draft]:
        return self._grow(tokens, min(depth, self._levels))

    def _grow(self, tokens: Sequence[int], depth: int) -> Generator[Forward, Scores, Draft]:
        if depth < 1:
            return EMPTY
        request, tree = self._request, TreeGrowth()
        draws: dict[int, list[int]] = {}
        through, chance = {ROOT: 1}, {ROOT: 1.0}
        frontier = {ROOT: (yield from self._laws.root(tokens))}
        for level in range(depth):
            fresh: list[int] = []
            for parent, law in frontier.items():
                if law is None:
                    continue
                drawn = self._draw(law, self._counts(level, through[parent]), request.position + level, parent)
                if not request.law.greedy:
                    tree.q[parent] = law
                nodes = {token: tree.add(parent, token) for token in dict.fromkeys(drawn)}
                if len(nodes) < len(drawn):
                    draws[parent] = [nodes[token] for token in drawn]
                for token, node in nodes.items():
                    through[node] = drawn.count(token)
                    chance[node] = 1.0 if request.law.greedy else chance[parent] * float(law[token])
                    if token not in request.stop_ids and chance[node] >= self._least:
                        fresh.append(node)
            if level == depth - 1 or not fresh:
                break
            rows = yield from self._laws.after([tree.paths[node] for node in fresh])
            frontier = dict(zip(fresh, rows, strict=True))
        if request.law.greedy or not tree.tokens:
            return Draft(tree.tokens, tree.parents)
        return Draft(tree.tokens, tree.parents, tree.q, self._siblings, draws=draws)

    def _draw(self, law: Tensor, count: int, position: int, parent: int) -> list[int]:
        """The drafts of a node in order, repeats included; in greedy decoding the likeliest tokens."""
        noise = self._request.noise
        if self._request.law.greedy:
            return likeliest(law, count)
        if self._siblings is Siblings.WITH_REPLACEMENT:
            return draw_independent(noise, law, count, position, parent)
        if self._siblings is Siblings.WITHOUT_REPLACEMENT:
            return draw_distinct(noise, law, count, position, parent)
        top = greedy_top(law, count - 1)
        rest = law.double().clone()
        rest[top] = 0
        # Where the likeliest tokens are all there are, no draw is left to make.
        return top + (draw_independent(noise, rest, 1, position, parent) if float(rest.sum()) > 0 else [])

    def observe(self, round: Round) -> None:
        self._laws.observe(round)


def greedy_top(law: Tensor, count: int) -> list[int]:
    """The `count` likeliest tokens of a law [vocabulary] that have mass, the lower id first among equals."""
    from decodery.speculative.transport.optimum import likeliest as likeliest_of

    top: list[int] = likeliest_of(law.double().cpu().numpy(), count).tolist()
    return top
