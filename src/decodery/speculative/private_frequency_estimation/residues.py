"""Residues modulo several numbers: sums over them and back without a matrix, and how well they tell values apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from decodery.errors import BadInput
from decodery.speculative.private_frequency_estimation.subset_selection import SubsetSelection

Array: TypeAlias = NDArray[np.float64]

DIRECT = 1024
"""Up to so many values the error is computed exactly, beyond from random directions."""
DIRECTIONS = 8
TOLERANCE = 1e-10
RECOVERED = 1e-4
"""A random law must come back from its residues to this, where there are too many values for a rank."""


@dataclass(frozen=True)
class ResidueSystem:
    """The residues of values 0..size - 1, after one public random permutation: without it the likely values, which have low
    ids, would fall together by a rule. seed: of the permutation. Raises BadInput for moduli that are no residue system of
    `size` values; that they determine every law is `full_rank`'s to say."""

    size: int
    moduli: tuple[int, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 2:
            raise BadInput(f"frequencies are of at least 2 values, not {self.size}.")
        if not self.moduli or min(self.moduli) < 2 or max(self.moduli) > self.size:
            raise BadInput(f"moduli must be numbers from 2 to {self.size}, the number of values.")
        for first, second in combinations(self.moduli, 2):
            if math.gcd(first, second) > 1:
                raise BadInput(f"moduli must have no common divisor, and {first} and {second} have.")
        if math.prod(self.moduli) < self.size:
            raise BadInput(f"the moduli's product must be at least {self.size}, or values have all residues in common.")
        rank = sum(self.moduli) - len(self.moduli) + 1
        if rank < self.size:
            raise BadInput(
                f"the moduli tell at most {rank} frequencies apart (their sum, less their number, plus one), and there are "
                f"{self.size}."
            )

    @cached_property
    def permutation(self) -> NDArray[np.int64]:
        """[size] what stands for each value. By raw bits, which no version of numpy changes."""
        raw = np.random.Philox(key=self.seed).random_raw(self.size)
        places = np.empty(self.size, dtype=np.int64)
        places[np.argsort(raw, kind="stable")] = np.arange(self.size)
        return places

    @cached_property
    def residues(self) -> tuple[NDArray[np.int64], ...]:
        """[size] of each modulus."""
        return tuple(self.permutation % modulus for modulus in self.moduli)

    def sums(self, law: Array) -> list[Array]:
        """A·z: of each modulus [modulus] the sums of `law` [size] over the values of each residue."""
        return [
            np.bincount(residues, law, modulus)  # type: ignore[misc]
            for residues, modulus in zip(self.residues, self.moduli, strict=True)
        ]

    def spread(self, sums: Sequence[Array]) -> Array:
        """The transpose: of each value [size] the total of what its residues have in `sums`."""
        total = np.zeros(self.size)
        for residues, one in zip(self.residues, sums, strict=True):
            total += one[residues]
        return total

    def solve(self, sums: Sequence[Array], weights: Sequence[float], ridge: float = 0.0) -> Array:
        """The law [size] whose sums come closest to `sums`: weighted least squares, by LSMR. weights: of each modulus; 0 leaves
        it out. ridge: weight of the law's own square."""
        from scipy.sparse.linalg import LinearOperator, lsmr

        mean = sum(w * m for w, m in zip(weights, self.moduli, strict=True)) / sum(self.moduli)
        roots = [math.sqrt(weight / mean) for weight in weights]
        borders = np.cumsum(self.moduli)[:-1]

        def forward(law: Array) -> Array:
            return np.concatenate([root * one for root, one in zip(roots, self.sums(law.ravel()), strict=True)])

        def back(rows: Array) -> Array:
            return self.spread([root * one for root, one in zip(roots, np.split(rows.ravel(), borders), strict=True)])

        system = LinearOperator((sum(self.moduli), self.size), matvec=forward, rmatvec=back, dtype=np.float64)
        wanted = np.concatenate([root * one for root, one in zip(roots, sums, strict=True)])
        found: Array = lsmr(
            system, wanted, damp=math.sqrt(ridge), atol=TOLERANCE, btol=TOLERANCE, conlim=0, maxiter=2000
        )[0]
        return found

    def full_rank(self, laws: int = 2) -> bool:
        """Whether the residues' sums determine every law: random ones must come back from theirs."""
        generator = np.random.default_rng(self.seed)
        for _ in range(laws):
            law = generator.standard_normal(self.size)
            found = self.solve(self.sums(law), [1.0] * len(self.moduli))
            if float(np.abs(found - law).max()) > RECOVERED:
                return False
        return True

    def information(self, weights: Sequence[float]) -> Array:
        """AᵀWA [size, size], for few values."""
        total = np.zeros((self.size, self.size))
        for residues, weight in zip(self.residues, weights, strict=True):
            total += weight * (residues[:, None] == residues[None, :])
        return total

    def condition(self, weights: Sequence[float]) -> float:
        """Largest over least eigenvalue of AᵀWA, for few values."""
        values = np.linalg.eigvalsh(self.information(weights))
        return float(values[-1] / values[0])

    def error(self, gains: Sequence[float], weights: Sequence[float] | None = None) -> float:
        """Mean square error of an estimate of rare values.

        gains: of each modulus its reports times what one of them tells (`SubsetSelection.gain`); 0: it has none. weights: of
        the fit; None: the gains, which are best. Exact up to 1,024 values; beyond, the mean over random directions
        (Hutchinson), which is true to some percent.
        """
        weights = gains if weights is None else weights
        if self.size <= DIRECT:
            solved = np.linalg.inv(self.information(weights))
            columns, count = solved.T, self.size
        else:
            columns = np.stack([self._solved(weights, place) for place in range(DIRECTIONS)])
            count = DIRECTIONS * self.size
        total = 0.0
        for residues, modulus, gain, weight in zip(self.residues, self.moduli, gains, weights, strict=True):
            if gain:
                order = np.argsort(residues, kind="stable")
                starts = np.searchsorted(residues[order], np.arange(modulus))
                sums = np.add.reduceat(columns[:, order], starts, axis=1)
                total += weight**2 / gain * float((sums**2).sum())
        return total / count

    def _solved(self, weights: Sequence[float], place: int) -> Array:
        """(AᵀWA)⁻¹ of a random vector of signs."""
        from scipy.sparse.linalg import LinearOperator, cg

        scale = max(weights)
        signs = np.random.default_rng((self.seed, place)).choice([-1.0, 1.0], self.size)

        def product(law: Array) -> Array:
            return self.spread([w / scale * one for w, one in zip(weights, self.sums(law.ravel()), strict=True)])

        operator = LinearOperator((self.size, self.size), matvec=product, dtype=np.float64)
        found: Array = cg(operator, signs, rtol=1e-6, maxiter=2000)[0]
        return found / scale


def primes_between(low: float, high: float) -> list[int]:
    """Primes from `low` to `high`."""
    sieve = np.ones(max(math.floor(high), 1) + 1, dtype=np.bool_)
    sieve[:2] = False
    for number in range(2, math.isqrt(len(sieve)) + 1):
        if sieve[number]:
            sieve[number * number :: number] = False
    found: list[int] = np.flatnonzero(sieve).tolist()
    return [prime for prime in found if prime >= low]


def band(size: int, count: int, width: float) -> tuple[float, float]:
    """The paper's band of candidates: from size / (width · count) to width · size / count, but below size."""
    return size / (width * count), min(width * size / count, size - 1)


def choose_moduli(
    size: int,
    epsilon: float,
    count: int = 10,
    between: tuple[float, float] = (0.5, 0.6),
    tries: int = 20,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ResidueSystem:
    """The best of random sets of primes: of those whose sums determine every law, the one with the least error.

    count: of moduli. between: their size, as shares of `size`: the larger, the smaller the error and the longer the reports.
    tries: sets that are drawn. seed: of the draws and of the permutation. Raises BadInput where no set will do.
    """
    candidates = primes_between(between[0] * size, min(between[1] * size, size - 1))
    if len(candidates) < count:
        raise BadInput(
            f"there are {len(candidates)} primes between {between[0]:g} and {between[1]:g} of {size}, too few for {count} "
            "moduli; widen the range, or take fewer."
        )
    generator = np.random.default_rng(seed)
    best: ResidueSystem | None = None
    least = math.inf
    for done in range(tries):
        moduli = sorted(generator.choice(candidates, count, replace=False).tolist())
        on_progress(done + 1, tries)
        if math.prod(moduli) < size or sum(moduli) - count + 1 < size:
            continue
        system = ResidueSystem(size, tuple(moduli), seed)
        if not system.full_rank():
            continue
        error = system.error([SubsetSelection(modulus, epsilon).gain for modulus in moduli])
        if error < least:
            best, least = system, error
    if best is None:
        raise BadInput(
            f"none of {tries} sets of {count} primes between {between[0]:g} and {between[1]:g} of {size} tells all values "
            "apart; take more moduli, or larger ones."
        )
    return best
