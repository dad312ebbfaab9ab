"""A sequence of scored tokens and the keys and values a network keeps for it."""

from __future__ import annotations

from collections.abc import Sequence as Listing
from typing import Protocol, Self

from decodery.models.layers import Layers
from decodery.models.owner import Owner


class Cache(Protocol):
    """Storage of one sequence, owned by the network that made it. Row indices are those of the sequence."""

    def expect(self, rows: int) -> None: ...
    def move(self, sources: Listing[int], start: int) -> None: ...
    def copy(self, rows: int) -> Cache: ...
    def take(self, other: Self, start: int, stop: int) -> None: ...


class NothingKept:
    """For scorers that keep nothing per row (tables, scripts)."""

    def expect(self, rows: int) -> None:
        pass

    def move(self, sources: Listing[int], start: int) -> None:
        pass

    def copy(self, rows: int) -> NothingKept:
        return self

    def take(self, other: NothingKept, start: int, stop: int) -> None:
        pass


class Sequence:
    """Token ids and the cache rows that stand for them.

    `tokens[i]` is the token of cache row i (-1 for a row fed as an embedding, or left out) and `positions[i]` its position id.
    """

    def __init__(self, owner: Owner, cache: Cache):
        """owner: the scorer that answers forwards of this sequence; cache: the storage it made for it."""
        self.owner = owner
        self.cache = cache
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.plain = 0
        """So many first rows were scored in order, each seeing all before it and itself, by `plain_layers`: who has the same
        tokens there may copy them. Kept by the engine."""
        self.plain_layers: Layers | None = None
        self.read = 0
        """The length of the text that the first forward scored. With the layers that it ran and `regime` for networks whose
        scores depend on the length of the text."""
        self.read_by: Layers | None = None
        self.regime = 0

    @property
    def length(self) -> int:
        """Number of cached rows."""
        return len(self.tokens)

    @property
    def next_position(self) -> int:
        """The position after that of the last row."""
        return self.positions[-1] + 1 if self.positions else 0

    def write(self, slots: Listing[int], tokens: Listing[int], positions: Listing[int]) -> None:
        """Record what a forward wrote. Called by networks, not by methods."""
        self.plain = min(self.plain, slots.start if isinstance(slots, range) else min(slots))
        if not self.tokens:
            self.read = max(positions, default=-1) + 1
        if isinstance(slots, range) and slots.start == self.length:  # the usual case: append
            self.tokens.extend(tokens)
            self.positions.extend(positions)
            return
        fresh = max(slots) + 1 - self.length
        self.tokens.extend([-1] * fresh)
        self.positions.extend([0] * fresh)
        for slot, token, position in zip(slots, tokens, positions, strict=True):
            self.tokens[slot] = token
            self.positions[slot] = position

    def keep(self, rows: Listing[int], start: int = 0) -> None:
        """Leave exactly rows 0..start-1 and then `rows`, in that order (the accepted path of a draft tree).

        rows: ascending cache rows, none below `start`. Raises ValueError otherwise.
        """
        rows = list(rows)
        if any(not start <= row < self.length for row in rows) or rows != sorted(set(rows)):
            raise ValueError(f"rows to keep must ascend within {start}..{self.length - 1}, got {rows}")
        moved = next((i for i, row in enumerate(rows) if row != start + i), len(rows))
        if moved < len(rows):
            self.cache.move(rows[moved:], start + moved)
        self.plain = min(self.plain, start)
        self.tokens[start:] = [self.tokens[row] for row in rows]
        self.positions[start:] = [self.positions[row] for row in rows]

    def truncate(self, length: int) -> None:
        """Forget all rows from `length` on. Raises ValueError where there are fewer."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot cut a sequence of {self.length} rows to {length}")
        del self.tokens[length:]
        del self.positions[length:]
        self.plain = min(self.plain, length)

    def fork(self) -> Sequence:
        """An independent copy."""
        twin = Sequence(self.owner, self.cache.copy(self.length))
        twin.tokens, twin.positions = list(self.tokens), list(self.positions)
        twin.plain, twin.plain_layers = self.plain, self.plain_layers
        twin.read, twin.read_by, twin.regime = self.read, self.read_by, self.regime
        return twin

    def take(self, other: Sequence, length: int) -> None:
        """Go on up to `length` rows as another sequence does, whose first rows are this one's: copy its keys and values."""
        start = self.length
        self.cache.take(other.cache, start, length)
        self.tokens.extend(other.tokens[start:length])
        self.positions.extend(other.positions[start:length])
