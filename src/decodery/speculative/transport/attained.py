"""What the known verifiers accept, computed without running them: recursive rejection and K-SEQ."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from decodery.speculative.transport.laws import Masses, check_count, laws

STEPS = 60
"""Halvings of the interval of rho; 40 reach 1e-12."""
ENUMERABLE = 20_000
"""Orders of refused drafts that are tried one by one; beyond that they are drawn."""


def rho_star(p: Any, q: Any, count: int) -> float:
    """The smallest division factor with which K-SEQ is valid for `count` drafts; in 1 … count.

    The residual is a law where 1 - (1 - beta)^count <= rho beta, beta the acceptance of one test. Bisection keeps the valid
    end, so that the residual is never negative by more than rounding. Source: Sun et al., arXiv 2310.15141, theorem 2.
    """
    target, draft = laws(p, q)
    check_count(count)
    # Between 1 and count only tokens with q <= p < count q change sides, so the sums over the others are taken once.
    support = draft > 0
    target, draft = target[support], draft[support]
    high_ratio, low_ratio = target >= count * draft, target < draft
    drafted, wanted = float(draft[high_ratio].sum()), float(target[low_ratio].sum())
    between = ~(high_ratio | low_ratio)
    target, draft = target[between], draft[between]

    def invalid(rho: float) -> bool:
        beta = drafted + wanted / rho + float(np.minimum(draft, target / rho).sum())
        return any_of(beta, count) > rho * beta

    low, high = 1.0, float(count)
    if not invalid(low):
        return low
    for _ in range(STEPS):
        middle = (low + high) / 2
        if invalid(middle):
            low = middle
        else:
            high = middle
    return high


def acceptance_of_test(p: Masses, q: Masses, rho: float) -> Masses:
    """min(q, p / rho) [vocabulary]: the probability that a single draft is a token and passes K-SEQ's test."""
    return np.minimum(q, p / rho)


def any_of(beta: float, count: int) -> float:
    """1 - (1 - beta)^count, with all digits where beta is small."""
    if beta >= 1:
        return 1.0
    return float(-np.expm1(count * np.log1p(-beta)))


def alpha_kseq(p: Any, q: Any, n: int, rho: float | None = None) -> float:
    """The acceptance of K-SEQ with n independent drafts; rho: the division factor, by default the best one."""
    target, draft = laws(p, q)
    check_count(n)
    factor = rho_star(target, draft, n) if rho is None else rho
    return any_of(float(acceptance_of_test(target, draft, factor).sum()), n)


def alpha_rrs_wr(p: Any, q: Any, n: int) -> float:
    """The acceptance of recursive rejection with n independent drafts: 1 - prod (1 - a_i)."""
    target, draft = laws(p, q)
    check_count(n)
    refused = 1.0
    for _ in range(n):
        refused *= max(0.0, 1 - float(np.minimum(target, draft).sum()))
        rest = np.maximum(target - draft, 0)
        if refused <= 0 or rest.sum() <= 0:
            return 1.0
        target = rest / rest.sum()
    return 1 - refused


def alpha_rrs_wor(p: Any, q: Any, n: int, samples: int = 1000, seed: int = 0) -> float:
    """The acceptance of recursive rejection with n drafts drawn without replacement.

    Exact where the orders in which drafts can be refused are few; otherwise the mean of `samples` drawn ones.
    """
    target, draft = laws(p, q)
    check_count(n)
    if int(np.count_nonzero(draft)) ** (n - 1) <= ENUMERABLE:
        return min(1.0, _enumerated(target, draft, n))
    return float(rrs_wor_samples(target, draft, n, samples, seed)[:, -1].mean())


def _enumerated(p: Masses, q: Masses, left: int) -> float:
    accepted = float(np.minimum(p, q).sum())
    rest, refused = np.maximum(p - q, 0), np.maximum(q - p, 0)
    if left == 1 or rest.sum() <= 0:
        return accepted
    rest /= rest.sum()
    for token in np.flatnonzero(refused):
        others = q.copy()
        others[token] = 0
        total = others.sum()
        if total > 0:
            accepted += float(refused[token]) * _enumerated(rest, others / total, left - 1)
    return accepted


def rrs_wor_samples(p: Any, q: Any, n: int, samples: int, seed: int = 0) -> NDArray[np.float64]:
    """[samples, n]: unbiased estimates of the acceptance with 1 … n drafts without replacement.

    Only what was refused is drawn; whether a draft is accepted is summed over, which leaves little variance. The draws
    are a function of `seed` alone.
    """
    target, draft = laws(p, q)
    check_count(n)
    support = draft > 0
    # Tokens that are never drafted only take part as their sum.
    r = np.tile(np.append(target[support], target[~support].sum()), (samples, 1))
    d = np.tile(np.append(draft[support], 0.0), (samples, 1))
    generator = np.random.Generator(np.random.Philox(key=seed))
    refused = np.ones(samples)
    estimates = np.empty((samples, n))
    rows = np.arange(samples)
    for draw in range(n):
        refused = refused * np.clip(1 - np.minimum(r, d).sum(axis=1), 0, 1)
        excess = np.cumsum(np.maximum(d - r, 0), axis=1)
        rest = np.maximum(r - d, 0)
        total = rest.sum(axis=1, keepdims=True)
        # Nothing to refuse, or nothing left over: only rounding keeps the acceptance from being 1.
        done = (total[:, 0] <= 0) | (excess[:, -1] <= 0)
        refused[done & (d.sum(axis=1) > 0)] = 0.0
        estimates[:, draw] = 1 - refused
        points = generator.random(samples) * excess[:, -1]
        tokens = np.minimum((excess <= points[:, None]).sum(axis=1), (excess < excess[:, -1:]).sum(axis=1))
        r = np.where(total > 0, rest / np.where(total > 0, total, 1), r)
        d[rows, tokens] = 0
        mass = d.sum(axis=1, keepdims=True)
        d = np.where(mass > 0, d / np.where(mass > 0, mass, 1), 0.0)
    return estimates
