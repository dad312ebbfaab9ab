"""Randomness with addresses.

Every draw is a pure function of (seed, request, position, stage, index). So a result depends neither on what else runs in
the batch, nor on how many drafts were made or rejected before it; and two methods that draw the token of a position from
the same law at the same address draw the same token.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

TINY = 2.0**-64
"""Below every positive number that is drawn: a drawn 0 stays finite under the logarithm."""


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


@runtime_checkable
class Chance(Protocol):
    """The random decisions that a method may take. `index` tells apart draws of the same place."""

    def choose(self, probabilities: Float[Tensor, "n"], position: int, stage: Stage, index: int = 0) -> int:
        """Draw an index of `probabilities` [n] (not necessarily normalised, with a positive sum)."""
        ...

    def accept(self, probability: float, position: int, index: int = 0) -> bool:
        """True with the given probability; never at 0."""
        ...

    def race(self, log_weights: Float[Tensor, "n"], position: int, stage: Stage, index: int = 0) -> int:
        """Draw an index of exp(log_weights) [n] (not necessarily normalised, not all minus infinity)."""
        ...


class Noise:
    """Counter-based noise of one request, on the CPU.

    seed: any integer; request: which of several samples of the same prompt and seed.
    """

    def __init__(self, seed: int, request: int = 0):
        self.seed, self.request = seed, request
        self._key = struct.pack("<qQ", request, seed & 0xFFFFFFFFFFFFFFFF)

    def _digest(self, position: int, stage: Stage, index: int, size: int) -> bytes:
        address = self._key + struct.pack("<qqq", position, int(stage), index)
        return hashlib.blake2b(address, digest_size=size).digest()

    def uniform(self, position: int, stage: Stage, index: int = 0) -> float:
        """A float64 in [0, 1) with 53 random bits."""
        return (int.from_bytes(self._digest(position, stage, index, 8), "little") >> 11) * 2.0**-53

    def uniforms(self, count: int, position: int, stage: Stage, index: int = 0) -> Float64[Tensor, "count"]:
        """`count` float64 in [0, 1)."""
        key = int.from_bytes(self._digest(position, stage, index, 16), "little")
        return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).random(count))

    def choose(self, probabilities: Float[Tensor, "n"], position: int, stage: Stage, index: int = 0) -> int:
        """Inverse transform: the first entry whose cumulated mass exceeds u times the total."""
        cumulated = probabilities.double().cumsum(0)
        point = self.uniform(position, stage, index) * float(cumulated[-1])
        place = int(torch.searchsorted(cumulated, point, right=True))
        # u close to 1 can round up to the total; the last entry with mass is meant then.
        return min(place, int(torch.searchsorted(cumulated, cumulated[-1])))

    def race(self, log_weights: Float[Tensor, "n"], position: int, stage: Stage, index: int = 0) -> int:
        """Gumbel-max: each entry has noise of its own at this address, and the highest sum wins.

        Where two laws are drawn from at the same address, each entry meets the same noise: laws that differ little draw
        the same entry mostly.
        """
        noise = -(-self.uniforms(log_weights.shape[0], position, stage, index).clamp_min(TINY).log()).log()
        return int((log_weights.double().cpu() + noise).argmax())

    def accept(self, probability: float, position: int, index: int = 0) -> bool:
        """Strictly below: a token of probability 0 is not accepted even at u = 0."""
        return self.uniform(position, Stage.ACCEPT, index) < probability
