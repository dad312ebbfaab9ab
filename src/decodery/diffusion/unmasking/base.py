"""What an unmasking rule is: a pure function of the laws of the masked positions, the step and the noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.diffusion.laws import Laws
    from decodery.models.forward import Forward
    from decodery.sampling.noise import Chance

Result = TypeVar("Result")
Asking = Generator["Forward | tuple[Forward, ...]", Any, Result]
"""Yields forwards, returns what became of their answers."""


@dataclass(frozen=True, slots=True)
class CanvasStep:
    """Where the decoding stands.

    number: steps of the whole canvas before this one; the address of a step's own draws. in_block: steps of this block before
    it. planned: steps this block is to take (rules without a plan ignore it). masks: offsets of the block that were masked
    when it began. start, end: the block. total: steps the whole canvas is to take.
    """

    number: int
    in_block: int
    planned: int
    masks: int
    start: int
    end: int
    total: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Offsets, and the tokens they get. Empty: nothing this time."""

    offsets: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()

    @classmethod
    def at(cls, laws: Laws, places: Sequence[int], tokens: Sequence[int]) -> Commit:
        """The offsets at these places of the laws, with these tokens."""
        return cls(tuple(laws.offsets[place] for place in places), tuple(tokens))

    @property
    def filled(self) -> dict[int, int]:
        """Offset -> token."""
        return dict(zip(self.offsets, self.tokens, strict=True))


class Rule(ABC):
    """An unmasking rule. A rule that runs a network itself makes `choose` a generator of forwards that returns a commit."""

    whole_canvas: ClassVar[bool] = False
    """Whether it sees every masked offset that was scored, and may fill any of them, or those of the block alone."""

    @abstractmethod
    def choose(self, laws: Laws, step: CanvasStep) -> Commit | Asking[Commit]:
        """What to fill now. laws: of at least one masked offset."""


def without_replacement(chance: Chance, weights: Tensor, count: int, step: CanvasStep) -> list[int]:
    """`count` places of weights [m], drawn one after the other in proportion to them, ascending."""
    from decodery.sampling.noise import Stage

    left = weights.double().clone()
    drawn: list[int] = []
    for number in range(min(count, left.shape[0])):
        if not float(left.sum()) > 0:  # what is left weighs nothing to rounding: the rest is taken in order
            drawn += [place for place in range(left.shape[0]) if place not in drawn][: count - number]
            break
        place = chance.choose(left, step.number, Stage.ORDER, number)
        drawn.append(place)
        left[place] = 0.0
    return sorted(drawn)
