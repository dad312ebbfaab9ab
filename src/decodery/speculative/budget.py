"""How much of a draft to verify: what pays on this machine.

Each node of a draft carries a label (its kind). How often nodes of a kind were right when their parent was right is
counted as decoding goes on; the product along a path estimates the chance that a node will be accepted. The size that
maximises expected tokens per second on the measured cost curve is verified, down to nothing where drafting does not pay.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from decodery.engine.cost import CostCurve
from decodery.speculative.draft import ROOT, Draft

PRIOR_WEIGHT = 4.0
"""The prior counts as much as this many observations."""
MEMORY = 256
"""Counts of a kind are halved when they reach this, so that old text is forgotten."""


@dataclass
class Acceptance:
    """Counts of right and wrong nodes by kind.

    prior: the chance assumed of a kind that was never seen.
    """

    prior: float = 0.4
    _counts: dict[Hashable, list[float]] = field(default_factory=dict)

    def chance(self, kind: Hashable) -> float:
        """Estimated probability that a node of this kind is accepted where its parent is."""
        hits, tries = self._counts.get(kind, (0.0, 0.0))
        return (hits + self.prior * PRIOR_WEIGHT) / (tries + PRIOR_WEIGHT)

    def _first(self, kind: Hashable) -> list[float]:
        """Hits and tries of a kind before it was seen."""
        return [0.0, 0.0]

    def observe(self, draft: Draft, tokens: Sequence[int]) -> None:
        """Count the nodes of `draft` (also those that were not verified) against what was committed after the root."""
        if not draft.kinds:
            return
        node = ROOT
        for token in tokens:
            matched = None
            for child in draft.children.get(node, ()):
                kind = draft.kinds[child]
                counts = self._counts.get(kind) or self._counts.setdefault(kind, self._first(kind))
                counts[1] += 1
                if draft.tokens[child] == token:
                    counts[0] += 1
                    matched = child
                if counts[1] >= MEMORY:
                    counts[0], counts[1] = counts[0] / 2, counts[1] / 2
            if matched is None:
                return
            node = matched

    def values(self, draft: Draft) -> list[float]:
        """Estimated probability of each node to be accepted."""
        values: list[float] = []
        for node, parent in enumerate(draft.parents):
            above = 1.0 if parent == ROOT else values[parent]
            values.append(above * self.chance(draft.kinds[node]))
        return values


def worthwhile(
    draft: Draft, acceptance: Acceptance, cost: CostCurve, rows: int, most: int | None = None, company: int = 1
) -> Draft:
    """The part of a draft whose verification maximises expected tokens per second.

    rows: how many rows are scored anyway (the last committed token, or a whole prompt). most: at most this many nodes.
    company: requests that share the
    pass, each taken to bring as many rows as this one.
    """
    if not len(draft) or not draft.kinds:
        return draft
    values = acceptance.values(draft)
    # A node's value never exceeds its parent's, so a prefix of this order always contains the ancestors.
    order = sorted(range(len(draft)), key=lambda node: (-values[node], node))
    best_rate, best_size, expected = 1.0 / cost(company * rows), 0, 1.0
    for size, node in enumerate(order[:most], start=1):
        expected += values[node]
        rate = expected / cost(company * (rows + size))
        if rate > best_rate:
            best_rate, best_size = rate, size
    return draft.select(sorted(order[:best_size]))


def best_path(draft: Draft, acceptance: Acceptance) -> Draft:
    """Of a deterministic tree the path with the most expected accepted tokens, as a chain."""
    values = acceptance.values(draft) if draft.kinds else [acceptance.prior**depth for depth in draft.depths()]
    totals: list[float] = []
    for value, parent in zip(values, draft.parents, strict=True):
        totals.append(value + (0.0 if parent == ROOT else totals[parent]))
    return draft.select(draft.path(max(range(len(draft)), key=totals.__getitem__)))


def best_chain(rate: float, target: CostCurve, step: float, most: int) -> tuple[int, float]:
    """The length of a chain with the most expected tokens per second, and its speed-up over plain decoding; (0, 1.0) where
    drafting does not pay.

    rate: chance that a token is accepted where the one before was. step: seconds of drafting one token. The expectation
    of a chain of g is (1 - rate^(g+1)) / (1 - rate), Leviathan et al., arXiv 2211.17192.
    """
    best, best_gain, expected, reached = 0, 1.0, 1.0, 1.0
    for length in range(1, most + 1):
        reached *= rate
        expected += reached
        gain = expected * target(1) / (target(1 + length) + length * step)
        if gain > best_gain:
            best, best_gain = length, gain
    return best, best_gain


def within(draft: Draft, depth: int, stop_ids: frozenset[int]) -> Draft:
    """The draft without nodes deeper than `depth` and without what follows a stop token."""
    depths = draft.depths()
    if max(depths, default=0) <= depth and stop_ids.isdisjoint(draft.tokens):
        return draft
    kept: list[int] = []
    alive: set[int] = {ROOT}
    for node, parent in enumerate(draft.parents):
        if parent in alive and depths[node] <= depth:
            kept.append(node)
            if draft.tokens[node] not in stop_ids:
                alive.add(node)
    return draft.select(kept)


def lawful(draft: Draft, may_follow: Callable[[int, Sequence[int]], bool]) -> Draft:
    """The draft without nodes whose token may not follow the path above, (token, path), and without what hangs on these. Of a
    draft that was not drawn at random: there, what is left out would change the law."""
    kept: list[int] = []
    paths: dict[int, list[int]] = {ROOT: []}
    for node, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
        above = paths.get(parent)
        if above is not None and may_follow(token, above):
            kept.append(node)
            paths[node] = [*above, token]
    return draft.select(kept)
