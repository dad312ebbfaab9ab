"""What any-subset autoregressive models are trained with: random prompts, the order that follows, and one pass for it all.

A row of N tokens is read as its given tokens in ascending position, and behind them the others, in ascending position as well
(Guo & Ermon, arXiv 2504.20456, section 4). Behind these stands one query for every token that is not given: a mask at that
token's position, which sees what comes before it in the order and itself, and which nobody sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from decodery.training.networks import SmallLlama


@dataclass(frozen=True)
class Ordered:
    """Rows of tokens in the order in which they are decoded.

    positions: [rows, length] int64, position by rank. given: [rows] int64, how many of the first ones are the prompt.
    """

    positions: Tensor
    given: Tensor

    @property
    def targets(self) -> Tensor:
        """[rows, most targets] bool: whether a row has that many targets."""
        left = self.positions.shape[1] - self.given
        return torch.arange(int(left.max()), device=left.device) < left[:, None]

    @property
    def ranks(self) -> Tensor:
        """[rows, most targets] int64: the rank of each target; of those that a row lacks, the last rank."""
        places = torch.arange(self.targets.shape[1], device=self.given.device)
        return (self.given[:, None] + places).clamp(max=self.positions.shape[1] - 1)


def shares(rows: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """The share of each row that is hidden, [rows]: one from each of as many equal bins of [low, high], in random order, which
    varies less from step to step than independent draws (the paper's finetune_xlnet_distributed.py)."""
    bins = (torch.arange(rows) + torch.rand(rows, generator=generator)) / rows
    return low + (high - low) * bins[torch.randperm(rows, generator=generator)]


def ordered(length: int, hidden: Tensor, generator: torch.Generator) -> Ordered:
    """Hide that share [rows] of the `length` positions of each row, at random; at least one, and at most all."""
    counts = (hidden * length).round().long().clamp(1, length)
    places = torch.rand(len(hidden), length, generator=generator).argsort(dim=1).argsort(dim=1)
    late = places < counts[:, None]
    return Ordered((late * length + torch.arange(length)).argsort(dim=1), length - counts)


def visible(order: Ordered, joint: bool = True) -> Tensor:
    """Who sees whom, [rows, 1, n, n] bool, n = length + most targets. joint: each target sees those before it; otherwise only
    what is given, so that all are independent."""
    length, given = order.positions.shape[1], order.given[:, None, None]
    ranks = torch.arange(length, device=given.device)
    sees = torch.zeros(len(given), *[length + order.targets.shape[1]] * 2, dtype=torch.bool, device=given.device)
    sees[:, :length, :length] = (ranks <= ranks[:, None]) | ((ranks[:, None] < given) & (ranks < given))
    before = order.ranks[..., None] if joint else given
    sees[:, length:, :length] = (ranks < before) & order.targets[..., None]
    sees |= torch.eye(sees.shape[1], dtype=torch.bool, device=given.device)
    return sees[:, None]


def costs(network: SmallLlama, tokens: Tensor, order: Ordered, mask_token: int, joint: bool = True) -> Tensor:
    """The cross-entropy in nats of every target, [rows, most targets] float32, 0 where there is none.

    tokens: [rows, length] int64, by position. Of the joint law the sum over a row's targets is minus its log density.
    """
    content, places = tokens.gather(1, order.positions), order.positions.gather(1, order.ranks)
    inputs = torch.cat((content, torch.full_like(places, mask_token)), dim=1)
    positions = torch.cat((order.positions, places), dim=1)
    rows = network(inputs, visible(order, joint), positions=positions)[:, tokens.shape[1] :]
    there = order.targets
    found = torch.zeros(there.shape, device=tokens.device)
    found[there] = F.cross_entropy(network.head(rows[there]), tokens.gather(1, places)[there], reduction="none")
    return found
