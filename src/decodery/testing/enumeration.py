"""The exact law of anything random: run it once for every way in which its decisions can fall.

Verifiers, drafters and whole requests take their random decisions through `sampling.Chance`. Put a chance in its place that
follows a script, and a few hundred runs give the law of the outcome to the last digit, where a million samples would give
three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from decodery.sampling.noise import Chance, Index, Stage

Outcome = TypeVar("Outcome", bound=Hashable)
SMALLEST = 1e-300
"""Branches below this are rounding, not probability."""


@dataclass(slots=True)
class _Decision:
    """One random decision: its branches of positive probability, and which one is taken now."""

    branches: list[tuple[int, float]]
    taken: int = 0


class ScriptedChance:
    """A chance that takes the branches of a script, and the first possible branch where the script ends.

    Decisions count as independent, so an address that is used twice is an error: with real noise both would fall alike.
    Drafters' own draws are exempt: a draw at a position that was drafted before and never looked at may be repeated.
    """

    def __init__(self, script: list[_Decision]):
        self._script = script
        self._next = 0
        self._used: set[tuple[int, Stage, Index]] = set()

    def choose(
        self, probabilities: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()
    ) -> int:
        masses = probabilities.double().tolist()
        total = math.fsum(masses)
        assert total > 0, f"a draw from a law without mass at position {position}"
        assert min(masses) >= 0, f"a draw from negative probabilities at position {position}"
        return self._decide([(i, mass / total) for i, mass in enumerate(masses)], position, stage, index)

    def accept(self, probability: float, position: int, index: Index = 0) -> bool:
        assert not math.isnan(probability), f"acceptance with probability nan at position {position}"
        chance = min(max(probability, 0.0), 1.0)
        return bool(self._decide([(1, chance), (0, 1 - chance)], position, Stage.ACCEPT, index))

    def fork(self, text: Sequence[int]) -> ScriptedChance:
        return self

    def race(self, log_weights: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()) -> int:
        return self.choose((log_weights.double() - log_weights.max()).exp(), position, stage, index)

    def _decide(self, branches: list[tuple[int, float]], position: int, stage: Stage, index: Index) -> int:
        if stage is not Stage.DRAFT:
            address = (position, stage, index)
            assert address not in self._used, f"the noise at {address} is used twice"
            self._used.add(address)
        if self._next == len(self._script):
            self._script.append(_Decision([branch for branch in branches if branch[1] > SMALLEST]))
        decision = self._script[self._next]
        self._next += 1
        return decision.branches[decision.taken][0]


def enumerate_outcomes(run: Callable[[Chance], Outcome], limit: int = 1_000_000) -> dict[Outcome, float]:
    """The exact law of `run`, which takes all its random decisions from the chance it is given.

    run: a function of the decisions alone; it is called once per leaf of the decision tree, and must do the same for the
    same decisions. limit: most leaves; RuntimeError beyond.
    """
    masses: dict[Outcome, list[float]] = {}
    script: list[_Decision] = []
    for _ in range(limit):
        outcome = run(ScriptedChance(script))
        mass = math.prod(decision.branches[decision.taken][1] for decision in script)
        masses.setdefault(outcome, []).append(mass)
        while script and script[-1].taken == len(script[-1].branches) - 1:
            script.pop()
        if not script:
            return {outcome: math.fsum(parts) for outcome, parts in masses.items()}
        script[-1].taken += 1
    raise RuntimeError(f"the decision tree has more than {limit} leaves")
