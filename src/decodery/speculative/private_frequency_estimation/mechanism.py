"""Modular subset selection: private reports of one value among many, their counts, and the frequencies behind them.

A user draws one modulus at random, whatever the value, and hides the value's residue by subset selection with the whole budget.
So a report is a random set of residues; whoever gathers reports counts how often each residue came. Counts of several servers
add up. Arcolezi, Private Frequency Estimation Via Residue Number Systems, AAAI 2026, arXiv 2511.11569.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import secrets
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decodery.errors import BadInput
from decodery.speculative.private_frequency_estimation.residues import Array, ResidueSystem, choose_moduli
from decodery.speculative.private_frequency_estimation.subset_selection import SubsetSelection

FORMAT = "decodery private frequencies 1"
FEW = 64
"""With fewer values than this they are hidden as they are: residues would gain nothing."""


@dataclass(frozen=True)
class Report:
    """What a user sends. block: place of the modulus. residues: the set, ascending."""

    block: int
    residues: tuple[int, ...]


@dataclass(frozen=True)
class Mechanism:
    """What users and servers agree on; nothing of it is secret.

    size: number of values. epsilon: budget of a report. moduli: pairwise coprime; `size` alone where values are hidden as they
    are. seed: of the permutation of values. ridge: weight of the frequencies' own square in the fit; 0: unbiased.
    Raises BadInput for what does not fit together.
    """

    size: int
    epsilon: float
    moduli: tuple[int, ...]
    seed: int = 0
    ridge: float = 0.0

    def __post_init__(self) -> None:
        if not self.ridge >= 0:
            raise BadInput(f"ridge must be at least 0, not {self.ridge:g}.")
        _ = self.system, self.blocks

    @classmethod
    def choose(
        cls,
        size: int,
        epsilon: float,
        count: int = 10,
        between: tuple[float, float] = (0.5, 0.6),
        tries: int = 20,
        seed: int = 0,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Mechanism:
        """With moduli that suit size and budget (`choose_moduli`)."""
        if size < FEW:
            return cls(size, epsilon, (size,), seed)
        system = choose_moduli(size, epsilon, count, between, tries, seed, on_progress)
        return cls(size, epsilon, system.moduli, seed)

    @cached_property
    def system(self) -> ResidueSystem:
        return ResidueSystem(self.size, self.moduli, self.seed)

    @cached_property
    def blocks(self) -> tuple[SubsetSelection, ...]:
        """How the residues of each modulus are hidden."""
        return tuple(SubsetSelection(modulus, self.epsilon) for modulus in self.moduli)

    def report(self, value: int) -> Report:
        """A private report of a value, drawn by the system's secure generator. One per user: a second one spends the budget a
        second time. Raises BadInput for a value that is none."""
        if not 0 <= value < self.size:
            raise BadInput(f"values are 0..{self.size - 1}, not {value}.")
        block = secrets.randbelow(len(self.moduli))
        residue = int(self.system.residues[block][value])
        return Report(block, self.blocks[block].draw(residue))

    @property
    def _block_bits(self) -> int:
        return (len(self.moduli) - 1).bit_length()

    def bits(self, block: int) -> int:
        """Length of a report of this modulus."""
        return self._block_bits + self.blocks[block].bits

    def encode(self, report: Report) -> str:
        """A report as text: the set's rank and the modulus' place, in as few bits as they take, in base 64."""
        number = self.blocks[report.block].rank(report.residues) << self._block_bits | report.block
        return base64.urlsafe_b64encode(number.to_bytes((self.bits(report.block) + 7) // 8, "little")).decode()

    def decode(self, text: str) -> Report:
        """A report read back. Raises BadInput where it is none of this mechanism."""
        try:
            raw = base64.b64decode(text.strip(), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise BadInput("a report is a line in base 64.") from None
        number = int.from_bytes(raw, "little")
        block = number & ((1 << self._block_bits) - 1)
        if block >= len(self.moduli) or len(raw) != (self.bits(block) + 7) // 8:
            raise BadInput("it is a report of another plan.")
        try:
            return Report(block, self.blocks[block].at(number >> self._block_bits))
        except BadInput:
            raise BadInput("it is a report of another plan.") from None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": FORMAT,
            "size": self.size,
            "epsilon": self.epsilon,
            "moduli": list(self.moduli),
            "seed": self.seed,
            "ridge": self.ridge,
        }

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Mechanism:
        """What `as_dict` gave. Raises BadInput."""
        try:
            if told["format"] != FORMAT:
                raise BadInput(f"it is of the format {told['format']!r}, not {FORMAT!r}.")
            return cls(
                int(told["size"]),
                float(told["epsilon"]),
                tuple(map(int, told["moduli"])),
                int(told["seed"]),
                float(told["ridge"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"it is no mechanism of private frequencies ({error!r}).") from None


@dataclass(frozen=True)
class Frequencies:
    """Estimated shares of all values. values: [size] float64, unbiased where there is no ridge, so some are below 0.
    standard_error: of a rare value's. reports: how many."""

    values: Array
    standard_error: float
    reports: int

    def threshold(self, alpha: float) -> float:
        """What an estimate of a value that nobody has exceeds with this probability."""
        return NormalDist().inv_cdf(1 - alpha) * self.standard_error

    def clipped(self) -> Array:
        """As a law: nothing below 0, in sum 1."""
        positive = np.maximum(self.values, 0.0)
        total = float(positive.sum())
        return positive / total if total else np.full(len(positive), 1 / len(positive))

    def projected(self) -> Array:
        """The law that is nearest by squares: what a common amount leaves of each value above 0."""
        ordered = np.sort(self.values)[::-1]
        excess = (np.cumsum(ordered) - 1) / np.arange(1, len(ordered) + 1)
        return np.maximum(self.values - excess[np.flatnonzero(ordered > excess)[-1]], 0.0)


@dataclass(eq=False)
class Counts:
    """How often each residue came: all that a server keeps. residues: of each modulus [modulus] int64. users: [moduli] int64
    reports of each. Counts of the same mechanism add up in any order (`merged`)."""

    mechanism: Mechanism
    residues: list[NDArray[np.int64]] = field(default_factory=list)
    users: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        if not self.residues:
            self.residues = [np.zeros(modulus, dtype=np.int64) for modulus in self.mechanism.moduli]
            self.users = np.zeros(len(self.mechanism.moduli), dtype=np.int64)

    def add(self, report: Report) -> None:
        """Count a report."""
        self.residues[report.block][list(report.residues)] += 1
        self.users[report.block] += 1

    @classmethod
    def merged(cls, parts: Iterable[Counts]) -> Counts:
        """The counts of all servers together. Raises BadInput where there are none, or their mechanisms differ."""
        several = list(parts)
        if not several:
            raise BadInput("there are no counts to merge.")
        first = several[0].mechanism
        if any(part.mechanism != first for part in several):
            raise BadInput("counts add up only where all come from the same plan.")
        residues = [np.sum([part.residues[block] for part in several], axis=0) for block in range(len(first.moduli))]
        return cls(first, residues, np.sum([part.users for part in several], axis=0))

    def frequencies(self) -> Frequencies:
        """What the reports say. Raises BadInput where they are too few to say anything: some moduli without a report, and the
        others do not tell all values apart."""
        mechanism, system = self.mechanism, self.mechanism.system
        gains = [block.gain * int(n) for block, n in zip(mechanism.blocks, self.users, strict=True)]
        there = [modulus for modulus, n in zip(mechanism.moduli, self.users, strict=True) if n]
        if sum(there) - len(there) + 1 < mechanism.size:
            raise BadInput(f"{int(self.users.sum())} reports are too few: most moduli have none.")
        sums = [
            (counted / max(int(n), 1) - float(block.other)) / float(block.own - block.other)
            for counted, n, block in zip(self.residues, self.users, mechanism.blocks, strict=True)
        ]
        values = system.solve(sums, gains, mechanism.ridge)
        return Frequencies(values, math.sqrt(system.error(gains)), int(self.users.sum()))

    def save(self, path: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write a .npz file. about: what else is told of the plan."""
        told = json.dumps({**self.mechanism.as_dict(), **(about or {})})
        with path.open("wb") as file:
            np.savez_compressed(file, plan=np.array(told), users=self.users, residues=np.concatenate(self.residues))

    @classmethod
    def read(cls, path: Path) -> tuple[Counts, dict[str, Any]]:
        """Counts, and all that is told of their plan. Raises BadInput where the file holds none."""
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["plan"]))
                users, residues = file["users"], file["residues"]
        except OSError as error:
            raise BadInput(f"the counts {path} cannot be read: {error.strerror or error}.") from None
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput(f"{path} holds no counts of reports ({error}).") from None
        mechanism = Mechanism.of(about)
        if len(users) != len(mechanism.moduli) or len(residues) != sum(mechanism.moduli):
            raise BadInput(f"{path} holds no counts of its own plan.")
        return cls(mechanism, np.split(residues, np.cumsum(mechanism.moduli)[:-1]), users), about
