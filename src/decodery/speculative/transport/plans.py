"""The transport problem as a linear program over sets of drafts: for small vocabularies, and to hold the scans against."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decodery.speculative.draft import Siblings
from decodery.speculative.transport.laws import Masses, check_count, law, laws
from decodery.speculative.transport.optimum import likeliest

Tokens = frozenset[int]


def set_law(q: Any, n: int, mode: Siblings) -> dict[Tokens, float]:
    """The law of the set of tokens that n drafts hold. A verifier needs no more: order and repeats tell nothing of p."""
    draft = law(q)
    check_count(n)
    if mode is Siblings.DETERMINISTIC:
        return {frozenset(likeliest(draft, n).tolist()): 1.0}
    support = np.flatnonzero(draft).tolist()
    if mode is Siblings.GREEDY:
        top = frozenset(likeliest(draft, n - 1).tolist())
        rest = {token: float(draft[token]) for token in support if token not in top}
        total = sum(rest.values())
        return {top | {token}: mass / total for token, mass in rest.items()} or {top: 1.0}
    sets: dict[Tokens, float] = {frozenset(): 1.0}
    for _ in range(n if mode is Siblings.WITH_REPLACEMENT else min(n, len(support))):
        grown: dict[Tokens, float] = {}
        for drawn, mass in sets.items():
            open_to = support if mode is Siblings.WITH_REPLACEMENT else [t for t in support if t not in drawn]
            total = sum(float(draft[token]) for token in open_to)
            for token in open_to:
                larger = drawn | {token}
                grown[larger] = grown.get(larger, 0.0) + mass * float(draft[token]) / total
        sets = grown
    return sets


@dataclass(frozen=True)
class Coupling:
    """A coupling of a set of drafts with the next token.

    accepted: set -> [vocabulary] probability that the set is drafted and this token of it is taken. residual:
    [vocabulary] masses of the token that is emitted where none is. masses: set -> its probability.
    """

    accepted: dict[Tokens, Masses]
    residual: Masses
    masses: dict[Tokens, float]

    @property
    def acceptance(self) -> float:
        return float(sum(row.sum() for row in self.accepted.values()))


def best_coupling(p: Any, q: Any, n: int, mode: Siblings) -> Coupling:
    """The plan that accepts the most, by linear programming over (set, token of the set).

    The solver's answer is good to some 1e-9. It is scaled down to what the laws allow, so that the output law is p to
    float64 whatever the solver did. Raises RuntimeError where it fails.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix

    target, draft = laws(p, q)
    masses = {drawn: mass for drawn, mass in set_law(draft, n, mode).items() if mass > 0}
    sets = list(masses)
    arcs = [(place, token) for place, drawn in enumerate(sets) for token in sorted(drawn) if target[token] > 0]
    accepted = {drawn: np.zeros(len(target)) for drawn in sets}
    if arcs:
        rows = [place for place, _ in arcs] + [len(sets) + token for _, token in arcs]
        columns = [*range(len(arcs)), *range(len(arcs))]
        limits = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(sets) + len(target), len(arcs)))
        bounds = np.concatenate([[masses[drawn] for drawn in sets], target])
        options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
        solved = linprog(-np.ones(len(arcs)), A_ub=limits.tocsr(), b_ub=bounds, method="highs-ds", options=options)
        if solved.x is None:
            raise RuntimeError(f"the transport plan could not be computed: {solved.message}")
        for (place, token), mass in zip(arcs, solved.x, strict=True):
            accepted[sets[place]][token] = max(mass, 0.0)
    for drawn, row in accepted.items():
        if row.sum() > masses[drawn]:
            row *= masses[drawn] / row.sum()
    taken = sum(accepted.values(), np.zeros(len(target)))
    scale = np.where(taken > target, target / np.where(taken > 0, taken, 1), 1.0)
    for row in accepted.values():
        row *= scale
    residual: NDArray[np.float64] = np.maximum(target - sum(accepted.values(), np.zeros(len(target))), 0)
    return Coupling(accepted, residual, masses)


def alpha_by_subsets(p: Any, q: Any, n: int, mode: Siblings) -> float:
    """alpha* as the minimum of 1 + P(H) - Q(H) over all subsets H; for vocabularies of a dozen tokens."""
    target, draft = laws(p, q)
    masses = set_law(draft, n, mode)
    best = 0.0
    for size in range(1, len(target) + 1):
        for subset in combinations(range(len(target)), size):
            chosen = frozenset(subset)
            inside = sum(mass for drawn, mass in masses.items() if drawn <= chosen)
            best = min(best, float(target[list(subset)].sum()) - inside)
    return 1 + best
