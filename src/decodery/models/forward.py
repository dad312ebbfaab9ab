"""What a method may ask of a network, and what it gets back.

A `Forward` names rows of one sequence to be scored; `Scores` holds what the network said about them. Everything a
decoding method needs (draft trees, canvases, early exits, embeddings as input) is a field here, so no method ever
touches a model.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from decodery._lazy import np, torch
from decodery.models.layers import ALL_LAYERS as ALL_LAYERS
from decodery.models.layers import Layers as Layers

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.models.sequence import Sequence


class Attend(enum.Enum):
    """Which cache rows the asked rows see, where no explicit mask is given."""

    CAUSAL = "causal"
    """Everything cached before this forward, and the rows of this forward up to and including the own one."""
    FULL = "full"
    """Everything cached and every row of this forward."""


class Rows(enum.Enum):
    """Which of the asked rows need logits."""

    ALL = "all"
    LAST = "last"
    NONE = "none"


class Slots(enum.Enum):
    """Where keys and values go, where no explicit slots are given."""

    APPEND = "append"
    NOWHERE = "nowhere"
    """Leave the cache as it was: the rows see each other and the cache, and are forgotten."""


POST_NORM = -1
"""The tap of the rows after the final norm, which enter the head."""

Tokens: TypeAlias = "Listing[int] | Tensor"


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """The last rows are the nodes of a draft tree that hangs on the row before them: who sees whom is as in `tree_mask`.

    parents: of each node, the index of a node before it, or -1 for the row that the tree hangs on.
    """

    parents: Listing[int]


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """One ask: score `tokens` in the context of `sequence`.

    tokens: n token ids, or embeddings [n, hidden] (hidden rows where `layers.start > 0`).
    positions: [n] position ids; by default the n positions after the cached ones.
    attend: CAUSAL, FULL, a tree (whose rows are appended, or written nowhere), or a bool mask [n, columns] (True: visible),
        whose columns are the cache rows as they are after this forward has written its own: cached + n when appending or
        writing nowhere.
    slots: APPEND, NOWHERE, or [n] cache rows to write. Beyond the cached rows they may leave gaps, which become rows that
        only an explicit mask can hide.
    layers: which decoder layers run; the caches of the others are not written.
    taps: layers whose output rows to return; `POST_NORM` for the rows that enter the head.
    logits: which rows need logits: ALL, LAST, NONE, or row indices in the order wanted.
    rank: where not 0, so many likeliest tokens of each of these rows are enough, and the network may tell these instead.
    joined: it is one batch with the forward of its network asked before it in the same step: its rows are counted, it itself is
        not.
    """

    sequence: Sequence
    tokens: Tokens
    positions: Listing[int] | None = None
    attend: Attend | Tree | Tensor = Attend.CAUSAL
    slots: Slots | Listing[int] = Slots.APPEND
    layers: Layers = ALL_LAYERS
    taps: tuple[int, ...] = ()
    logits: Rows | Listing[int] = Rows.ALL
    rank: int = 0
    joined: bool = False

    @property
    def count(self) -> int:
        """How many rows are asked."""
        return len(self.tokens)

    def logit_rows(self) -> Listing[int]:
        """The row indices whose logits are wanted, in order."""
        if self.logits is Rows.ALL:
            return range(self.count)
        if self.logits is Rows.LAST:
            return (self.count - 1,)
        if self.logits is Rows.NONE:
            return ()
        return self.logits

    def row_positions(self) -> Listing[int]:
        """The position id of each row."""
        if self.positions is not None:
            return self.positions
        if isinstance(self.slots, Slots):
            start = self.sequence.next_position
            return range(start, start + self.count)
        return self.slots

    def columns(self) -> int:
        """How many cache rows the attention of this forward ranges over."""
        if isinstance(self.slots, Slots):
            return self.sequence.length + self.count
        return max(self.sequence.length, max(self.slots) + 1)

    def written_slots(self) -> Listing[int]:
        """The cache row of each asked row; for NOWHERE the row it borrows during the pass."""
        if isinstance(self.slots, Slots):
            return range(self.sequence.length, self.sequence.length + self.count)
        return self.slots

    def visible(self, device: torch.device | None = None) -> Tensor:
        """The mask as a bool tensor [n, columns]."""
        columns = self.columns()
        if isinstance(self.attend, Tree):
            nodes = len(self.attend.parents)
            mask = tree_mask(self.sequence.length, self.count - nodes, self.attend.parents)
            return mask if device is None else mask.to(device)
        if not isinstance(self.attend, Attend):
            return self.attend if device is None else self.attend.to(device)
        if self.attend is Attend.FULL:
            return torch.ones(self.count, columns, dtype=torch.bool, device=device)
        slots = torch.tensor(list(self.written_slots()), device=device)
        return torch.arange(columns, device=device)[None, :] <= slots[:, None]

    def check(self, vocabulary: int, layers: int, hidden: int | None) -> None:
        """Raise ValueError where the ask is malformed, before it is packed with others.

        vocabulary: number of token ids; layers: of the network; hidden: width of its rows (None: unknown).
        """
        if self.count == 0:
            raise ValueError("a forward needs at least one row")
        if isinstance(self.tokens, torch.Tensor) and self.tokens.is_floating_point():
            if self.tokens.dim() != 2 or (hidden is not None and self.tokens.shape[1] != hidden):
                raise ValueError(f"embeddings must have shape [n, {hidden}], not {list(self.tokens.shape)}")
        elif self.layers.start > 0:
            raise ValueError("a forward that starts at a later layer needs hidden rows, not token ids")
        else:
            if isinstance(self.tokens, torch.Tensor) and self.tokens.dim() != 1:
                raise ValueError(f"token ids must have shape [n], not {list(self.tokens.shape)}")
            ids = self.tokens.tolist() if isinstance(self.tokens, torch.Tensor) else self.tokens
            if min(ids) < 0 or max(ids) >= vocabulary:
                raise ValueError(f"token ids must lie in 0..{vocabulary - 1}, got {min(ids)}..{max(ids)}")
        if self.rank < 0:
            raise ValueError(f"rank must not be negative, got {self.rank}")
        running = self.layers.indices(layers)
        if self.positions is not None and len(self.positions) != self.count:
            raise ValueError(f"{self.count} rows need as many positions, not {len(self.positions)}")
        if self.positions is not None and min(self.positions) < 0:
            raise ValueError(f"positions must not be negative, got {min(self.positions)}")
        if not isinstance(self.slots, Slots):
            if len(self.slots) != self.count:
                raise ValueError(f"{self.count} rows need as many slots, not {len(self.slots)}")
            if min(self.slots) < 0 or len(set(self.slots)) != self.count:
                raise ValueError(f"slots must differ and not be negative, got {list(self.slots)}")
            fresh = sorted(slot for slot in self.slots if slot >= self.sequence.length)
            gap = fresh != list(range(self.sequence.length, self.sequence.length + len(fresh)))
            if gap and not isinstance(self.attend, torch.Tensor):
                raise ValueError(
                    f"slots leave a gap after the {self.sequence.length} cached rows, so a mask must say who sees what"
                )
        if isinstance(self.attend, Tree):
            parents = self.attend.parents
            if not isinstance(self.slots, Slots):
                raise ValueError("a tree's rows are appended or written nowhere; with slots of its own it needs a mask")
            if len(parents) > self.count:
                raise ValueError(f"a tree of {len(parents)} nodes needs as many rows, not {self.count}")
            for node, parent in enumerate(parents):
                if not -1 <= parent < node:
                    raise ValueError(f"node {node} has parent {parent}, which does not come before it")
        elif isinstance(self.attend, torch.Tensor):
            if tuple(self.attend.shape) != (self.count, self.columns()) or self.attend.dtype != torch.bool:
                shape = f"{self.attend.dtype} {list(self.attend.shape)}"
                raise ValueError(f"the mask must be bool [{self.count}, {self.columns()}], not {shape}")
            if not bool(self.attend.any(dim=1).all()):
                raise ValueError("the mask has a row that sees nothing; let it see at least itself")
        for row in self.logit_rows():
            if not 0 <= row < self.count:
                raise ValueError(f"logits were asked of row {row}, but there are {self.count} rows")
        for tap in self.taps:
            if tap != POST_NORM and tap not in running:
                raise ValueError(f"layer {tap} cannot be tapped: it is not among the layers that run, {list(running)}")


class Ranking(NamedTuple):
    """The likeliest tokens of rows, likeliest first, the lowest id among equals.

    ids: of each row, k of them. shares: their probabilities. Lists and no tensors: who looks at them does so in Python, between
    two passes, where each operation on a tensor takes longer than all of it.
    """

    ids: Listing[list[int]]
    shares: Listing[list[float]]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """The answer to one `Forward`.

    logits: [rows asked, vocabulary] float32, raw (no temperature, no masks); no rows where there is a ranking.
    hidden: tap -> [n, hidden] in the network's dtype.
    ranking: of the rows asked, instead of logits, where the forward said that this is enough (`rank`).
    """

    logits: Tensor
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    ranking: Ranking | None = None


def tree_mask(cached: int, pending: int, parents: Listing[int]) -> Tensor:
    """The bool mask [pending + n, cached + pending + n] of a draft tree that hangs on the last of `pending` rows.

    Each pending row sees the cache and the pending rows up to itself; each node sees the cache, all pending rows, its
    ancestors and itself. `parents[i]` is the index of node i's parent (lower than i), or -1 for the last pending row.
    """
    rows, columns = pending + len(parents), cached + pending + len(parents)
    return torch.from_numpy(np.frombuffer(tree_bytes(cached, pending, parents), dtype=bool).reshape(rows, columns))


def tree_bytes(cached: int, pending: int, parents: Listing[int]) -> bytearray:
    """The rows of `tree_mask`, one after the other, as bytes of 0 and 1."""
    nodes, first = len(parents), cached + pending
    # Without arrays: between two passes, one operation on tensors costs as much as all of this.
    mask = bytearray()
    for row in range(pending):
        mask += (b"\1" * (cached + row + 1)).ljust(first + nodes, b"\0")
    # The nodes that each node sees, as the bytes of one number: those of its parent and itself.
    seen: list[int] = []
    everything = b"\1" * first
    for node, parent in enumerate(parents):
        seen.append((seen[parent] if parent >= 0 else 0) | 1 << 8 * node)
        mask += everything + seen[node].to_bytes(nodes, "little")
    return mask
