"""Where likely next tokens come from without a network, and how much each source is to be believed.

A source answers one question: which tokens may follow these last ones, and with which shares. Several answer at once; the
mixture of their answers, weighted by how well each has done lately, is the drafting law of a node.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from math import exp, log, log2
from typing import TypeAlias

from decodery.speculative.budget import Acceptance
from decodery.speculative.continuations.successors import LENGTHS, SuccessorTable

ORDERS = (1, 2, 3, 4, 6, 8)
"""Lengths of the runs of last tokens that are looked up in the text."""
LONGEST = ORDERS[-1]
OCCURRENCES = 3
"""So many last occurrences of a run are looked at."""
LEAST_SHARE = 0.01
"""Likely tokens with a smaller share are not worth remembering."""
MOST_ROWS = 1 << 20
"""Rows that a session remembers; beyond, the older half is forgotten."""

Tail: TypeAlias = tuple[int, ...]
"""The last tokens before a node, at most LONGEST of them."""


Answer: TypeAlias = tuple[Hashable, Sequence[int], Sequence[float]]
"""What one source says: a label under which its merit is counted, likely next tokens, and their shares."""


# Each label is one object: finding its weight then compares nothing.
_COPIED = {(order, count): ("copied", order, count) for order in ORDERS for count in range(OCCURRENCES + 1)}
_SHARES = [(), *((1.0 / count,) * count for count in range(1, OCCURRENCES + 1))]
_PAIR, _SINGLE = ("recycled", 2), ("recycled", 1)
_TABLED = [[("table", length, count) for count in range(5)] for length in LENGTHS]


class Copied:
    """What followed the last occurrences of the last 1, 2, 3, 4, 6 and 8 tokens in the request's own text."""

    def __init__(self) -> None:
        self._after: dict[Tail, list[int]] = {}
        self._tokens: list[int] = []

    def read(self, tokens: Sequence[int]) -> None:
        """Take in the tokens that came since the last call."""
        text, after = self._tokens, self._after
        for token in tokens[len(text) :]:
            tail = tuple(text[-LONGEST:])
            for order in ORDERS:
                if order > len(tail):
                    break
                run = tail[-order:]
                seen = after.get(run)
                if seen is None:
                    after[run] = [token]
                    continue
                seen.append(token)
                if len(seen) > OCCURRENCES:
                    del seen[0]
            text.append(token)

    def answers(self, tail: Tail, into: list[Answer]) -> None:
        for order in ORDERS:
            seen = self._after.get(tail[-order:])
            if seen is None or order > len(tail):
                return
            count = len(seen)
            if seen.count(seen[0]) == count:
                into.append((_COPIED[order, count], (seen[0],), _SHARES[1]))
            else:
                into.append((_COPIED[order, 0], seen, _SHARES[count]))


class Recycled:
    """The target's own likeliest successors of pairs of tokens and of tokens, as it last computed them in a verification.

    Source of the idea: Token Recycling, arXiv 2408.08696, which keeps them by single tokens and without their shares.
    """

    def __init__(self) -> None:
        self._rows: dict[int | Tail, Answer] = {}

    def learn(self, before: int, token: int, ids: list[int], shares: list[float]) -> None:
        """ids, shares: the target's likeliest tokens after `before` and then `token`, likeliest first."""
        rows = self._rows
        kept = len(shares)
        while kept and shares[kept - 1] < LEAST_SHARE:
            kept -= 1
        ids, shares = ids[:kept], shares[:kept]
        rows[before, token] = (_PAIR, ids, shares)
        rows[token] = (_SINGLE, ids, shares)
        if len(rows) > MOST_ROWS:
            for key in list(rows)[: MOST_ROWS // 2]:
                del rows[key]

    def answers(self, tail: Tail, into: list[Answer]) -> None:
        row = self._rows.get(tail[-1])
        if row is None:
            return
        into.append(row)
        row = self._rows.get(tail[-2:])
        if row is not None:
            into.append(row)


class Tabled:
    """A table of successors that was made before."""

    def __init__(self, table: SuccessorTable):
        self._table = table
        self._after = lru_cache(MOST_ROWS)(self._look_up)

    def _look_up(self, run: Tail) -> Answer:
        ids, shares, count = self._table.after(run)
        return _TABLED[len(run) - 1][min(count, 4)], ids, shares

    def answers(self, tail: Tail, into: list[Answer]) -> None:
        for length in LENGTHS[: len(tail)]:
            answer = self._after(tail[-length:])
            if not answer[1]:
                return
            into.append(answer)


Source: TypeAlias = Copied | Recycled | Tabled

PRIOR: dict[Hashable, float] = {
    **{_COPIED[order, seen]: weight * (1.0 if seen == 0 else 0.8 + 0.2 * seen)
       for order, weight in zip(ORDERS, (0.1, 0.5, 1.5, 3.0, 6.0, 10.0), strict=True) for seen in (0, 1, 2, 3)},
    _SINGLE: 0.3,
    _PAIR: 2.5,
    **dict.fromkeys(_TABLED[0], 0.1),
    **{label: 0.5 + 0.25 * count for count, label in enumerate(_TABLED[1])},
    **{label: 0.8 + 0.3 * count for count, label in enumerate(_TABLED[2])},
}  # fmt: skip
"""Weights before anything was learned."""
LEAST_WEIGHT = 0.3
"""Sources that weigh less than this together leave room for tokens that none of them names."""
RATE = 0.05


class Mixture:
    """Weights of sources, by label, learned from what was committed.

    A step of exponentiated gradient ascent on the log likelihood of each committed token that some source named: the weight
    of a label grows where its share of the responsibility for the token exceeds its share of the weights.
    """

    def __init__(self) -> None:
        self._weights = dict(PRIOR)

    def law(self, answers: Sequence[Answer], least: float = 0.0) -> list[tuple[int, float]]:
        """Tokens that the answers name and their estimated probabilities, those of at least `least`; they sum to one at
        most."""
        weights = self._weights
        total = 0.0
        law: dict[int, float] = {}
        for label, ids, shares in answers:
            weight = weights[label]
            total += weight
            for token, share in zip(ids, shares):  # noqa: B905 (strict costs as much as the sum)
                law[token] = law.get(token, 0.0) + weight * share
        total = max(total, LEAST_WEIGHT)
        least *= total
        return [(token, share / total) for token, share in law.items() if share >= least]

    def learn(self, answers: Sequence[Answer], token: int) -> None:
        """`token` followed where these answers were given."""
        weights = self._weights
        parts = [
            weights[label] * sum(share for named, share in zip(ids, shares, strict=True) if named == token)
            if token in ids
            else 0.0
            for label, ids, shares in answers
        ]
        named = sum(parts)
        if named <= 0:
            return
        total = sum(weights[label] for label, _, _ in answers)
        for (label, _, _), part in zip(answers, parts, strict=True):
            step = RATE * (part / named - weights[label] / total)
            weights[label] = exp(min(4.0, max(-6.0, log(weights[label]) + step)))


LEVELS = 20
CERTAIN = LEVELS
"""The level of what must follow by the law."""


def level(chance: float) -> int:
    """How sure a mixture is of a token, in thirds of a factor of two: 0 (certain) to LEVELS - 1."""
    return min(LEVELS - 1, int(-3 * log2(chance)))


class Sureness(Acceptance):
    """How often tokens of each level followed in fact, where the node above was right. Begins with the mixture's own word.
    The kinds of a draft are levels."""

    def __init__(self) -> None:
        super().__init__()
        self._counts = {place: self._first(place) for place in range(LEVELS)}

    def _first(self, kind: Hashable) -> list[float]:
        assert isinstance(kind, int)
        return [8.0 * 2.0 ** (-(kind + 0.5) / 3), 8.0]

    def chance(self, kind: Hashable) -> float:
        hits, tries = self._counts[kind]
        return hits / tries

    def chances(self) -> list[float]:
        """The chance of each level."""
        return [self.chance(kind) for kind in range(LEVELS)]
