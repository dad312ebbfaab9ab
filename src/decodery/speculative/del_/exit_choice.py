"""Where to exit and how far to draft: what exits were seen to get right, held against what a round costs.

Source: DEL, arXiv 2504.05598, section 3: tokens per layer. Heads, packed rows and the look at the exits are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from decodery._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.cost import CostCurve

PLAIN_INTERVAL = 8
"""Where drafting does not pay, every so many plain rounds the exits are looked at again."""
PRECAUTION = 1.1
"""By how much a measured draft is taken to be dearer than its rows: each pass through a few layers has a fixed cost that the
curve of whole passes does not show, and the best of several noisy estimates is too good to be true."""


@dataclass(frozen=True)
class ExitPrice:
    """What a round costs, in layers of one row.

    layers: of the network. draft_head, full_head: the heads' cost. exits: how many exits are looked at. curve: seconds by
    rows; None: rows scored together cost what one does. With the defaults it is the paper's d * l + L.
    """

    layers: int
    draft_head: float = 0.0
    full_head: float = 0.0
    exits: int = 0
    curve: CostCurve | None = None

    def __call__(self, exit: int, length: int) -> float:
        """Of a round that drafts `length` tokens with the first `exit` layers; 0: of a plain step."""
        whole = self.layers + self.full_head
        if length == 0:
            return whole + self.draft_head * self._rows(self.exits) / PLAIN_INTERVAL
        drafting = length * (exit + self.draft_head) + exit
        verifying = (whole - exit) * self._rows(length + 1)
        round = drafting + verifying + self.draft_head * self._rows(self.exits * (length + 1))
        return round if self.curve is None else round * PRECAUTION

    def at(self, context: int) -> ExitPrice:
        """The price after `context` cached tokens."""
        return self if self.curve is None else replace(self, curve=self.curve.at(context))

    def _rows(self, count: int) -> float:
        """How many times as much as one row so many rows cost together."""
        if self.curve is None or count == 0:
            return 1.0 if count else 0.0
        return self.curve(count) / self.curve(1)


class ExitStatistics:
    """Decayed counts of how often each exit would have drafted what the target took, and how sure it was.

    All are per exit, in the order of `exits`: `counts` [exits, 2] of matches and mismatches, `confidences` [exits, 2] sums.
    """

    def __init__(self, exits: Sequence[int], omega: float):
        self.exits, self.omega = tuple(exits), omega
        self.counts = torch.zeros(len(exits), 2)
        self.confidences = torch.zeros(len(exits), 2)

    def update(self, match: Tensor, confidence: Tensor) -> None:
        """A round. match: [exits, n] bool; confidence: [exits, n] the exits' probability of their likeliest token."""
        right = match.float()
        both = torch.stack([right, 1 - right], dim=-1)
        self.counts = self.omega * self.counts + both.sum(dim=1)
        self.confidences = self.omega * self.confidences + (both * confidence[..., None]).sum(dim=1)

    def rates(self) -> list[float]:
        """Match rate of each exit; NaN where nothing was seen."""
        rates: list[float] = (self.counts[:, 0] / self.counts.sum(dim=1)).tolist()
        return rates

    def threshold(self, exit: int) -> float:
        """Halfway between the mean confidence of matches and of mismatches; NaN where one of them was never seen."""
        place = self.exits.index(exit)
        return float((self.confidences[place] / self.counts[place]).mean())

    def select(self, price: Callable[[int, int], float], lengths: Sequence[int]) -> tuple[int, int]:
        """The exit and length, one of `lengths`, with the most tokens per layer; among equals the smallest exit, then the
        smallest length. The first exit and a length of 1 where nothing was seen yet."""
        best, chosen = -math.inf, (self.exits[0], 1)
        for exit, rate in zip(self.exits, self.rates(), strict=True):
            if math.isnan(rate):
                continue
            expected = 1.0
            for length in range(max(lengths) + 1):
                expected = 1.0 + rate * expected if length else 1.0
                value = expected / price(exit, length)
                if length in lengths and value > best:
                    best, chosen = value, (exit, length)
        return chosen
