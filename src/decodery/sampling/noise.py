"""Randomness with addresses.

Every draw is a pure function of (seed, sample, position, stage, index). So a result depends neither on what else runs in
the batch, nor on how many drafts were made or rejected before it; and two methods that draw the token of a position from
the same law at the same address draw the same token. An index is a number, or a tuple of numbers and words of any length:
nobody packs several into one.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, TypeAlias, runtime_checkable

from decodery._lazy import np, torch
from decodery.sampling.forbidding import few

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from torch import Tensor

TINY = 2.0**-64
"""Below every positive number that is drawn: a drawn 0 stays finite under the logarithm."""
BLOCK = 128
"""Entries of a long law that are summed before it is known where among them a draw falls."""


class Stage(enum.IntEnum):
    """What a draw is for; part of its address."""

    TARGET = 0
    """The token of a position from the target's own law."""
    ACCEPT = 1
    """Whether a drafted token is accepted."""
    RESIDUAL = 2
    """The token that replaces a rejected draft."""
    DRAFT = 3
    """A drafter's own draw."""
    ORDER = 4
    """Which positions of a canvas come next."""
    LAW = 5
    """A decision that a step of the law takes itself."""


Index: TypeAlias = int | tuple[int | str, ...]
"""What tells apart draws of one position and stage."""


@runtime_checkable
class Chance(Protocol):
    """The random decisions that a method may take.

    index: tells apart draws of the same place. path: the tokens between the committed text and the position, where it is not
    the next one; some chances look at the text before a position, and refuse a draw of the target where it is not all there.
    """

    def choose(
        self,
        probabilities: Float[Tensor, "n"],
        position: int,
        stage: Stage,
        index: Index = 0,
        path: Sequence[int] = (),
    ) -> int:
        """Draw an index of `probabilities` [n] (not necessarily normalised, with a positive sum)."""
        ...

    def accept(self, probability: float, position: int, index: Index = 0) -> bool:
        """True with the given probability; never at 0."""
        ...

    def race(
        self, log_weights: Float[Tensor, "n"], position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()
    ) -> int:
        """Draw an index of exp(log_weights) [n] (not necessarily normalised, not all minus infinity)."""
        ...

    def fork(self, text: Sequence[int]) -> Chance:
        """The chance of a text that begins as this one's and goes its own way. text: its committed tokens, which grow with
        it."""
        ...


@dataclass(frozen=True)
class Draw:
    """A random decision that was taken: its address, and the number in [0, 1) that decided it; of a race the key, a whole
    number, that its vector of numbers follows from (`unrolled`)."""

    position: int
    stage: Stage
    index: Index
    number: float | int


class Numbers(ABC):
    """A chance that decides by numbers between 0 and 1, one or a vector of them at each address."""

    record: list[Draw] | None = None
    """Where its draws are noted, if anywhere."""
    by_mass: ClassVar[bool] = False
    """Whether `choose` looks at cumulated masses alone, so that entries without any may be left out."""

    def note(self, position: int, stage: Stage, index: Index, number: float | int) -> None:
        """Note a draw where somebody wants to know."""
        if self.record is not None:
            self.record.append(Draw(position, stage, index, number))

    @abstractmethod
    def uniform(self, position: int, stage: Stage, index: Index = 0) -> float:
        """A float64 in [0, 1)."""

    @abstractmethod
    def key(self, position: int, stage: Stage, index: Index = 0) -> int:
        """What the vector of numbers of an address follows from."""

    def uniforms(self, count: int, position: int, stage: Stage, index: Index = 0) -> Float64[Tensor, "count"]:
        """`count` float64 in [0, 1)."""
        return unrolled(self.key(position, stage, index), count)

    def choose(
        self,
        probabilities: Float[Tensor, "n"],
        position: int,
        stage: Stage,
        index: Index = 0,
        path: Sequence[int] = (),
    ) -> int:
        """Inverse transform: the first entry whose cumulated mass exceeds u times the total."""
        number = self.uniform(position, stage, index)
        self.note(position, stage, index, number)
        return inverse(probabilities, number)[0]

    def race(
        self, log_weights: Float[Tensor, "n"], position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()
    ) -> int:
        """Gumbel-max: each entry has noise of its own at this address, and the highest sum wins.

        Where two laws are drawn from at the same address, each entry meets the same noise: laws that differ little draw
        the same entry mostly.
        """
        if self.record is not None:
            self.note(position, stage, index, self.key(position, stage, index))
        return fastest(log_weights, self.uniforms(log_weights.shape[0], position, stage, index))

    def accept(self, probability: float, position: int, index: Index = 0) -> bool:
        """Strictly below: a token of probability 0 is not accepted even at u = 0."""
        number = self.uniform(position, Stage.ACCEPT, index)
        self.note(position, Stage.ACCEPT, index, number)
        return number < probability

    def fork(self, text: Sequence[int]) -> Self:
        """The chance of a text that begins as this one's and goes its own way. text: its committed tokens, which grow with
        it."""
        return self


class Noise(Numbers):
    """Counter-based noise of one sample, on the CPU.

    seed: any integer; sample: which of several samples of the same prompt and seed.
    """

    by_mass = True

    def __init__(self, seed: int, sample: int = 0):
        self.seed, self.sample = seed, sample
        self._key = struct.pack("<qQ", sample, seed & 0xFFFFFFFFFFFFFFFF)

    def _digest(self, position: int, stage: Stage, index: Index, size: int) -> bytes:
        if isinstance(index, int):
            address = self._key + struct.pack("<qqq", position, int(stage), index)
            return hashlib.blake2b(address, digest_size=size).digest()
        parts = b"".join(_written(part) for part in index)
        address = self._key + struct.pack("<qq", position, int(stage)) + parts
        return hashlib.blake2b(address, digest_size=size, person=b"tuple").digest()

    def uniform(self, position: int, stage: Stage, index: Index = 0) -> float:
        """A float64 in [0, 1) with 53 random bits."""
        return (int.from_bytes(self._digest(position, stage, index, 8), "little") >> 11) * 2.0**-53

    def key(self, position: int, stage: Stage, index: Index = 0) -> int:
        """What the vector of numbers of an address follows from."""
        return int.from_bytes(self._digest(position, stage, index, 16), "little")


def _written(part: int | str) -> bytes:
    """A part of an index, such that no two tuples are written alike."""
    word = str(part).encode()
    return (b"n" if isinstance(part, int) else b"w") + struct.pack("<q", len(word)) + word


def unrolled(key: int, count: int) -> Float64[Tensor, "count"]:
    """`count` float64 in [0, 1) that follow from a key."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).random(count))


def inverse(probabilities: Float[Tensor, "n"], number: float) -> tuple[int, float, float]:
    """The first entry whose cumulated mass exceeds number times the total; the mass before it, and its own, as shares.

    Entries without mass are never it. Of many entries only those with mass are summed, where they are few; otherwise the sums
    of blocks tell first in which block it is, and then the sums of the entries there. Sums are float64.
    """
    masses = probabilities.detach().cpu()
    if masses.dtype not in (torch.float32, torch.float64):
        masses = masses.float()
    blocks = len(masses) // BLOCK
    if blocks < BLOCK:
        return _inverse(masses.double().numpy(), number)
    places = few(masses, 0.0)
    if places is not None:
        place, before, share = _inverse(masses.numpy()[places], number)
        return int(places[place]), before, share
    sums = masses[: blocks * BLOCK].reshape(blocks, BLOCK).sum(1, dtype=torch.float64).numpy()
    if blocks * BLOCK < len(masses):
        sums = np.append(sums, float(masses[blocks * BLOCK :].sum(dtype=torch.float64)))
    cumulated = sums.cumsum()
    total = float(cumulated[-1])
    block = _first_above(cumulated, number * total)
    before = float(cumulated[block - 1]) if block else 0.0
    inside = masses[block * BLOCK : (block + 1) * BLOCK].double().numpy().cumsum()
    place = _first_above(inside, number * total - before)
    before += float(inside[place - 1]) if place else 0.0
    place += block * BLOCK
    return place, before / total, float(masses[place]) / total


def _inverse(masses: Float[np.ndarray, "n"], number: float) -> tuple[int, float, float]:
    """The same of few entries, by the sum of all before each."""
    cumulated = masses.cumsum(dtype=np.float64)
    total = float(cumulated[-1])
    place = _first_above(cumulated, number * total)
    before = float(cumulated[place - 1]) if place else 0.0
    return place, before / total, (float(cumulated[place]) - before) / total


def _first_above(cumulated: Float64[np.ndarray, "n"], target: float) -> int:
    """The first place where a cumulated mass exceeds a target. One close to the total can round up to it; the last entry with
    mass is meant then."""
    place = int(cumulated.searchsorted(target, "right"))
    return place if place < len(cumulated) else int(cumulated.searchsorted(cumulated[-1]))


def fastest(log_weights: Float[Tensor, "n"], numbers: Float64[Tensor, "n"]) -> int:
    """The entry whose log weight and Gumbel noise, made of its number, have the highest sum."""
    return int((log_weights.double().cpu() + gumbel(numbers)).argmax())


def gumbel(numbers: Float64[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """Each number in [0, 1) as one of Gumbel's law."""
    return -(-numbers.clamp_min(TINY).log()).log()
