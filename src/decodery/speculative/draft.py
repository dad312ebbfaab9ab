"""A draft: a tree of proposed tokens that hangs on the last committed token. A chain is a tree."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROOT = -1
"""The parent of the nodes that follow the last committed token directly."""


class Siblings(enum.Enum):
    """How the children of a node were drawn; decides which verifier may judge them."""

    DETERMINISTIC = "deterministic"
    """Chosen without randomness; no draft probabilities."""
    WITH_REPLACEMENT = "with replacement"
    """Independent draws from the parent's draft law, in order of their indices."""
    WITHOUT_REPLACEMENT = "without replacement"
    """Successive draws, each from the law without the earlier ones, in order of their indices."""
    GREEDY = "greedy set"
    """The likeliest tokens of the draft law without randomness, and as the last child one draw from the rest."""


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """Proposed tokens in topological order.

    tokens: [n] token ids. parents: [n] index of each node's parent, lower than the node's own, or ROOT.
    q: parent index -> the processed draft law [vocabulary] its children were drawn from (probabilities); None where
        the draft is deterministic. siblings: how children were drawn. kinds: [n] a label per node under which its
        acceptance is counted; nodes of equal label are assumed to be accepted equally often.
    Raises ValueError where the parts do not fit together.
    """

    tokens: Sequence[int]
    parents: Sequence[int]
    q: Mapping[int, Tensor] | None = None
    siblings: Siblings = Siblings.DETERMINISTIC
    kinds: Sequence[Hashable] = ()
    draws: Mapping[int, Sequence[int]] = field(default_factory=dict)
    children: Mapping[int, Sequence[int]] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents):
            raise ValueError(f"{len(self.tokens)} tokens need as many parents, not {len(self.parents)}")
        if self.kinds and len(self.kinds) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens need as many kinds, not {len(self.kinds)}")
        if (self.q is None) != (self.siblings is Siblings.DETERMINISTIC):
            raise ValueError("a draft has draft probabilities exactly when its tokens were drawn at random")
        children: dict[int, list[int]] = {}
        named: set[tuple[int, int]] = set()
        for node, parent in enumerate(self.parents):
            if not ROOT <= parent < node:
                raise ValueError(f"node {node} has parent {parent}, which does not come before it")
            if self.q is not None and parent not in self.q:
                raise ValueError(f"node {node} was drawn, but its parent {parent} has no draft law")
            named.add((parent, self.tokens[node]))
            if len(named) <= node and self.siblings is not Siblings.WITH_REPLACEMENT:
                raise ValueError(f"node {node} repeats the token {self.tokens[node]} of a sibling; merge them")
            children.setdefault(parent, []).append(node)
        if self.draws and self.siblings is not Siblings.WITH_REPLACEMENT:
            raise ValueError("only children drawn with replacement can be drawn more than once")
        for parent, drawn in self.draws.items():
            if set(drawn) != set(children.get(parent, ())):
                raise ValueError(f"the draws of node {parent} are {list(drawn)}, which are not its children")
        object.__setattr__(self, "children", children)

    def __len__(self) -> int:
        return len(self.tokens)

    def drawn(self, node: int) -> Sequence[int]:
        """The children of a node (or of ROOT), one entry per draw, in the order of the draws."""
        return self.draws.get(node) or self.children.get(node, ())

    @property
    def is_chain(self) -> bool:
        """Whether each node follows the one before it."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    def depths(self) -> list[int]:
        """Distance of each node from the last committed token; at least 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return depths

    def path(self, node: int) -> list[int]:
        """Node indices from the first node after the root to `node`; empty for ROOT."""
        path: list[int] = []
        while node != ROOT:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def select(self, nodes: Sequence[int]) -> Draft:
        """The draft of these nodes alone: ascending, and with every node its parent. Raises ValueError otherwise.

        Of a draft drawn at random, whole families must go or stay: which siblings remain must not tell what was drawn.
        """
        if len(nodes) == len(self.tokens):
            return self
        places = {ROOT: ROOT, **{node: place for place, node in enumerate(nodes)}}
        try:
            parents = [places[self.parents[node]] for node in nodes]
        except KeyError as missing:
            raise ValueError(f"a node is kept but its parent {missing} is not") from None
        q = None if self.q is None else {places[p]: law for p, law in self.q.items() if p in places}
        kinds = [self.kinds[node] for node in nodes] if self.kinds else ()
        draws = {
            places[p]: [places[child] for child in drawn if child in places]
            for p, drawn in self.draws.items()
            if p in places and any(child in places for child in drawn)
        }
        return Draft([self.tokens[node] for node in nodes], parents, q, self.siblings, kinds, draws)


EMPTY = Draft((), ())
"""Nothing proposed: a plain step."""


def chain(tokens: Sequence[int], kinds: Sequence[Hashable] = ()) -> Draft:
    """A deterministic draft in which each token follows the one before it."""
    return Draft(list(tokens), list(range(-1, len(tokens) - 1)), kinds=kinds)
