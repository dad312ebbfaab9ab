"""The optimal acceptance of any multi-draft verifier, for a given way of drawing the drafts.

Source: Hu et al., arXiv 2502.18779 (ICLR 2025): the dual of the transport problem is a minimum over sets H of tokens,

    alpha* = 1 + min_H [P(H) - Q(H)],   P(H) the target's mass of H,   Q(H) = Pr(all drafts lie in H),

and for drafts drawn with or without replacement the minimum is attained on a prefix of the tokens sorted by q/p.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decodery.speculative.draft import Siblings
from decodery.speculative.transport.laws import Masses, check_count, laws

STEP = 0.1
"""Distance of the quadrature's nodes in log time. The integrand is analytic, so the error falls exponentially: 1e-14."""
LOWEST, HIGHEST = -40.0, 46.0
"""Range of log time. Beyond it less than 1e-17 of the integral is lost, for any mass that float64 tells from nothing."""
ENOUGH = 60.0
"""e^-60 of an exponential time's law is nothing."""
BLOCK = 1 << 13
"""Numbers per draft count that the quadrature works on at a time; more would leave the processor's cache."""


def alpha_star(p: Any, q: Any, n: int, mode: Siblings) -> float:
    """The largest probability with which one of n drafts from q can become the next token, if its law is to be p.

    p, q: [vocabulary] processed laws of target and draft. mode: how the drafts are drawn. One deterministic set of drafts
    is the n likeliest tokens of q. Raises ValueError for what is no law.
    """
    return alpha_stars(p, q, (n,), mode)[n]


def alpha_stars(p: Any, q: Any, counts: Sequence[int], mode: Siblings, step: float = STEP) -> dict[int, float]:
    """`alpha_star` for several numbers of drafts in one pass over the vocabulary.

    step: of the quadrature that more than two drafts without replacement need; 0.4 is enough for eight digits.
    """
    target, draft = laws(p, q)
    for n in counts:
        check_count(n)
    if mode is Siblings.WITHOUT_REPLACEMENT:
        return {n: float(row[0]) for n, row in without_replacement([target], [draft], counts, step).items()}
    if mode is Siblings.WITH_REPLACEMENT:
        target, draft = _sorted(target, draft)
        inside, masses = np.cumsum(draft), np.cumsum(target)
        return {n: _clip(1 + min(0.0, float((masses - inside**n).min()))) for n in counts}
    if mode is Siblings.GREEDY:
        return {n: _greedy(target, draft, n) for n in counts}
    return {n: _clip(float(target[likeliest(draft, n)].sum())) for n in counts}


def likeliest(q: Masses, count: int) -> NDArray[np.intp]:
    """The `count` likeliest tokens of q that have mass, the likeliest first; the lower id among equals."""
    support = np.flatnonzero(q)
    if 0 < count < len(support):
        least = np.partition(q[support], len(support) - count)[len(support) - count]
        support = np.flatnonzero(q >= least)
    order = np.argsort(-q[support], kind="stable")
    return np.asarray(support[order][:count])


def _greedy(p: Masses, q: Masses, n: int) -> float:
    """sum of p over Top, and of min(p, q') over the rest, q' being q without Top (section "greedy" of the source)."""
    top = likeliest(q, n - 1)
    rest = q.copy()
    rest[top] = 0
    total = rest.sum()
    accepted = p[top].sum()
    if total > 0:
        accepted += np.minimum(p, rest / total).sum()
    return _clip(float(accepted))


def _sorted(p: Masses, q: Masses) -> tuple[Masses, Masses]:
    """The tokens that can be drafted, by q/p decreasing. Tokens without q never help a set."""
    support = q > 0
    p, q = p[support], q[support]
    with np.errstate(over="ignore", under="ignore"):
        order = np.argsort(p / q, kind="stable")
    return p[order], q[order]


def without_replacement(
    targets: Sequence[Masses], drafts: Sequence[Masses], counts: Sequence[int], step: float = STEP
) -> dict[int, Masses]:
    """alpha* of drafts drawn one after the other without replacement, for several pairs of laws: count -> [pairs].

    One and two drafts have closed forms. More are an exponential race: every token arrives after an exponential time of
    rate q(x), the drafts are the first n to arrive, and all lie in H if n of H arrive before the first of the others.
    """
    pairs = [_sorted(p, q) for p, q in zip(targets, drafts, strict=True)]
    found = {n: np.empty(len(pairs)) for n in counts}
    racing: dict[int, list[int]] = {}
    for place, (p, q) in enumerate(pairs):
        for n in counts:
            drawn = min(n, len(q))  # a smaller support is drawn whole
            if drawn <= 2:
                found[n][place] = _optimum(p, _closed_form(q, drawn))
            else:
                racing.setdefault(place, []).append(n)
    if racing:
        _race({place: pairs[place] for place in racing}, racing, step, found)
    return found


def _optimum(p: Masses, inside: Masses) -> float:
    return _clip(1 + min(0.0, float((np.cumsum(p) - inside).min())))


def _clip(alpha: float) -> float:
    return min(max(alpha, 0.0), 1.0)


def _closed_form(q: Masses, n: int) -> Masses:
    """Q of every prefix for one or two drafts."""
    inside = np.cumsum(q)
    if n == 1:
        return inside
    after = np.append(np.cumsum(q[::-1])[::-1][1:], 0.0)
    others = np.append(0.0, inside[:-1]) + after  # 1 - q(x), without losing digits where q(x) is close to 1
    return np.asarray(1 - after * (1 + np.cumsum(q / others)))


def _race(
    pairs: dict[int, tuple[Masses, Masses]], wanted: dict[int, list[int]], step: float, found: dict[int, Masses]
) -> None:
    """Fill `found` for the pairs that need the quadrature, in blocks of pairs of similar length."""
    places = sorted(pairs, key=lambda place: len(pairs[place][1]))
    nodes = int((HIGHEST - LOWEST) / step) + 1
    size = max(1, BLOCK // nodes)
    for start in range(0, len(places), size):
        block = places[start : start + size]
        length = max(len(pairs[place][1]) for place in block)
        q = np.zeros((len(block), length))
        for row, place in enumerate(block):
            q[row, : len(pairs[place][1])] = pairs[place][1]
        most = max(min(n, len(pairs[place][1])) for place in block for n in wanted[place])
        inside = race(q, most, step)
        for row, place in enumerate(block):
            p = pairs[place][0]
            for n in wanted[place]:
                found[n][place] = _optimum(p, inside[min(n, len(p)) - 1, row, : len(p)])


def race(q: NDArray[np.float64], most: int, step: float = STEP) -> NDArray[np.float64]:
    """Q(first j + 1 tokens) for 1 … `most` drafts without replacement: [most, rows, tokens].

    q: [rows, tokens] laws in the order of their prefixes; zeros may stand at the end. With s = 1 - q(H),
    Q(H) = integral of s e^(-s t) Pr(at least n of H arrived by t) dt, by the trapezoidal rule in y = log t, where the
    number of arrivals is carried along token by token.
    """
    rows, tokens = q.shape
    after = np.concatenate([np.cumsum(q[:, ::-1], axis=1)[:, ::-1][:, 1:], np.zeros((rows, 1))], axis=1)
    positive = after[after > 0]
    highest = min(HIGHEST, np.log(ENOUGH / positive.min())) if positive.size else 0.0
    time = np.exp(np.arange(LOWEST, highest + step, step))
    arrivals = np.zeros((most, rows, len(time)))  # Pr(exactly m of the tokens so far have arrived by then)
    arrivals[0] = 1.0
    inside = np.empty((most, rows, tokens))
    for token in range(tokens):
        absent = np.exp(-q[:, token, None] * time)
        came = arrivals[:-1] * (1 - absent)
        arrivals *= absent
        arrivals[1:] += came
        rate = after[:, token, None] * time
        weight = step * rate * np.exp(-rate)
        too_few = np.cumsum(np.einsum("mrt,rt->mr", arrivals, weight), axis=0)
        inside[:, :, token] = 1 - too_few
    return inside
