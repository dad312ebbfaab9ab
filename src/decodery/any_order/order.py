"""The order in which positions of a window are decoded, and the forwards of an any-order model that follow from it.

Given positions come first and see each other, then the others in ascending position, each of which sees those before it: 2^N
orders in place of N!, so that no text can be reached by two paths (Guo & Ermon, arXiv 2504.20456, section 4). A row of the
cache is a rank, so keys and values of what is decided never change. Behind rows of tokens stand queries, rows of a mask with
the position that they score, which see tokens and themselves and are seen by nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.models.forward import Forward

if TYPE_CHECKING:
    from decodery.models.sequence import Sequence as CachedSequence


class DecodingOrder:
    """Positions by rank: the given ones, then the targets, both ascending."""

    def __init__(self, given: Sequence[int], targets: Sequence[int]):
        self.positions = [*sorted(given), *sorted(targets)]
        self.given = len(given)
        """How many of the first ranks are given."""

    @property
    def targets(self) -> list[int]:
        """The positions that are not given."""
        return self.positions[self.given :]

    def forward(
        self,
        sequence: CachedSequence,
        tokens: Sequence[int],
        ranks: range,
        mask: int,
        joint: bool,
    ) -> Forward:
        """One ask for the laws of the targets of these ranks.

        sequence: whose rows are those of the first ranks, at least none. tokens: by rank, as far as they are decided or
        drafted; those that have no row yet get one, and rows of queries stand behind them, to be cut off. mask: the token of
        a query. joint: each query sees all tokens before its rank; otherwise those before the first of the ranks, so that the
        targets are independent. Raises ValueError where a token is missing.
        """
        kept, content, count = sequence.length, len(tokens) - sequence.length, len(ranks)
        if len(tokens) < (ranks[-1] if joint else ranks[0]) or kept > ranks[0]:
            raise ValueError(
                f"{len(tokens)} tokens, {kept} of them with rows, are too few or too many for ranks {ranks}"
            )
        columns = torch.arange(kept + content + count)
        rank = torch.arange(kept, kept + content)[:, None]
        among = (columns <= rank) | ((rank < self.given) & (columns < self.given))
        before = torch.tensor(list(ranks) if joint else [ranks[0]] * count)[:, None]
        own = columns == kept + content + torch.arange(count)[:, None]
        return Forward(
            sequence,
            [*tokens[kept:], *[mask] * count],
            positions=[*self.positions[kept : kept + content], *(self.positions[rank] for rank in ranks)],
            attend=torch.cat([among, (columns < before) | own]),
            logits=range(content, content + count),
        )
