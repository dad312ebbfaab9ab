"""Simulated users, many at a time: for tests and studies, with a seeded generator. Who reports for real draws from the system's
secure generator (`Mechanism.report`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from decodery.speculative.private_frequency_estimation.mechanism import Counts, Mechanism
from decodery.speculative.private_frequency_estimation.subset_selection import SubsetSelection

Values = NDArray[np.int64]
CHUNK = 1 << 23
"""Numbers that are drawn at a time."""
CROWDED = 2.0
"""Expected pairs of equal draws in a set from which on it is cut from a whole order instead of being drawn again."""


def simulated_sets(selection: SubsetSelection, values: Values, chance: np.random.Generator) -> Values:
    """Sets [n, chosen] for values [n], as `SubsetSelection.draw` draws them; in no order."""
    n, size, chosen = len(values), selection.size, selection.chosen
    holds = chance.random(n) < float(selection.own)
    if chosen**2 > 2 * CROWDED * size:
        keys = chance.random((n, size))
        keys[np.arange(n), values] = np.where(holds, -1.0, 2.0)
        return np.argpartition(keys, chosen - 1, axis=1)[:, :chosen]
    sets = np.empty((n, chosen), dtype=np.int64)
    again = np.arange(n)
    while len(again):  # sets with equal draws are drawn again as a whole, which leaves all others equally likely
        drawn = chance.integers(0, size - 1, (len(again), chosen))
        drawn += drawn >= values[again, None]
        sets[again] = drawn
        ordered = np.sort(drawn, axis=1)
        again = again[(ordered[:, 1:] == ordered[:, :-1]).any(axis=1)]
    sets[holds, 0] = values[holds]
    return sets


def reports(
    mechanism: Mechanism, values: Values, chance: np.random.Generator, shares: NDArray[np.float64] | None = None
) -> Iterator[tuple[int, Values, Values]]:
    """The reports of users with these values [n]: place of the modulus, values of some users, their sets. shares: of users by
    modulus; None: equal."""
    block = chance.choice(len(mechanism.moduli), len(values), p=shares)
    for place, selection in enumerate(mechanism.blocks):
        own = values[block == place]
        step = max(1, CHUNK // selection.size)
        for start in range(0, len(own), step):
            some = own[start : start + step]
            yield place, some, simulated_sets(selection, mechanism.system.residues[place][some], chance)


def simulated_counts(
    mechanism: Mechanism, values: Values, chance: np.random.Generator, shares: NDArray[np.float64] | None = None
) -> Counts:
    """What a server counts of users with these values [n]."""
    counts = Counts(mechanism)
    for place, some, sets in reports(mechanism, values, chance, shares):
        counts.residues[place] += np.bincount(sets.ravel(), minlength=mechanism.moduli[place])
        counts.users[place] += len(some)
    return counts


def guessed(
    mechanism: Mechanism, values: Values, chance: np.random.Generator, by_residue: bool = False
) -> NDArray[np.float64]:
    """How often an attacker who sees one report finds the value [n]: it guesses evenly among all values whose residue is in the
    set, which is the best that can be done where all values are equally likely. by_residue: first evenly among the residues of
    the set, then among the values of that one, as the paper's formula has it."""
    found = []
    for place, some, sets in reports(mechanism, values, chance):
        residues = mechanism.system.residues[place]
        sizes = np.bincount(residues, minlength=mechanism.moduli[place])
        consistent = sets.shape[1] * sizes[residues[some]] if by_residue else sizes[sets].sum(axis=1)
        right = (sets == residues[some][:, None]).any(axis=1)
        found.append(right / consistent)
    return np.concatenate(found)
