"""A sequence of scored tokens and the keys and values a network keeps for it."""

from __future__ import annotations

from collections.abc import Sequence as Listing
from typing import TYPE_CHECKING, Protocol, Self

from decodery._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.models.forward import Layers
    from decodery.models.scorer import Scorer


class Cache(Protocol):
    """Storage of one sequence, owned by the network that made it. Row indices are those of the sequence."""

    def expect(self, rows: int) -> None: ...
    def reserve(self, rows: int) -> None: ...
    def move(self, sources: Listing[int], start: int) -> None: ...
    def copy(self, rows: int) -> Cache: ...
    def take(self, other: Self, start: int, stop: int) -> None: ...


class NoCache:
    """For scorers that keep nothing per row (tables, scripts)."""

    def expect(self, rows: int) -> None:
        pass

    def reserve(self, rows: int) -> None:
        pass

    def move(self, sources: Listing[int], start: int) -> None:
        pass

    def copy(self, rows: int) -> NoCache:
        return self

    def take(self, other: NoCache, start: int, stop: int) -> None:
        pass


class KeyValueCache:
    """Keys and values of all layers, [group of equal layers][layers, 2, heads, capacity, head width].

    Layers of equal shape share one tensor, so that keeping an accepted path is one copy and not one per layer.
    Where it is known how many rows may come, room for all of them is made at once, but not touched before it is needed;
    otherwise capacity doubles. Rows beyond the sequence's length are scratch. A network may lay out rows of a layer's keys or
    values in its own way, in groups of `together` rows that are copied as a whole.
    """

    together = 1

    def __init__(self, shapes: Listing[tuple[int, int]], dtype: torch.dtype, device: torch.device):
        """shapes: (key/value heads, head width) of each layer."""
        self._shapes = tuple(shapes)
        self._dtype, self._device = dtype, device
        self._capacity = self._expected = self._cleared = 0
        self._groups: list[Tensor] = []
        self._views: list[Tensor] = []

    @property
    def capacity(self) -> int:
        """Rows there is room for."""
        return self._capacity

    def address(self) -> int:
        """Where the keys and values of the first layer begin. Raises ValueError where layers differ in shape."""
        if len(self._groups) != 1:
            raise ValueError(f"the layers' keys lie in {len(self._groups)} tensors, not in one")
        return self._groups[0].data_ptr()

    def both(self, index: int) -> Tensor:
        """Keys and values of layer `index`, [2, heads, capacity, head width]; a writable view."""
        return self._views[index]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of layer `index`, each [heads, capacity, head width]; writable views."""
        view = self._views[index]
        return view[0], view[1]

    def expect(self, rows: int) -> None:
        """There will be at most so many rows: the first `reserve` makes room for all, and none is wasted."""
        self._expected = rows

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows."""
        if rows <= self._cleared:
            return
        ready = max(128, self._cleared)
        while ready < rows:
            ready *= 2
        if rows > self._expected:
            self._allocate(ready)
        elif self._capacity < self._expected:
            self._allocate(self._expected)
        ready = min(ready, self._capacity)
        # Zeros, not what was there: a masked column still enters the product, and 0 * NaN would be NaN.
        for group in self._groups:
            group[:, :, :, self._cleared : ready] = 0
        self._cleared = ready

    def _allocate(self, capacity: int) -> None:
        old, used = self._groups, self._cleared
        groups: list[Tensor] = []
        views: list[Tensor] = [None] * len(self._shapes)  # type: ignore[list-item]
        for shape in dict.fromkeys(self._shapes):
            layers = [i for i, other in enumerate(self._shapes) if other == shape]
            heads, width = shape
            group = torch.empty(len(layers), 2, heads, capacity, width, dtype=self._dtype, device=self._device)
            if old:
                group[:, :, :, :used] = old[len(groups)]
            for place, layer in enumerate(layers):
                views[layer] = group[place]
            groups.append(group)
        self._groups, self._views, self._capacity = groups, views, capacity

    def move(self, sources: Listing[int], start: int) -> None:
        """Copy rows `sources`, which ascend and lie behind, to start, start + 1, … in every layer."""
        for group in self._groups:
            # Mostly one row or two: to collect them first would take twice as long.
            for row, source in enumerate(sources, start):
                group.select(3, row).copy_(group.select(3, source))

    def copy(self, rows: int) -> KeyValueCache:
        twin = type(self)(self._shapes, self._dtype, self._device)
        twin.expect(self._expected)
        if rows:
            twin.take(self, 0, rows)
        return twin

    def take(self, other: KeyValueCache, start: int, stop: int) -> None:
        """Copy rows start..stop-1 of a cache of the same layers, whose earlier rows are this one's."""
        start, stop = start // self.together * self.together, -(-stop // self.together) * self.together
        self.reserve(stop)
        for mine, theirs in zip(self._groups, other._groups, strict=True):
            mine[:, :, :, start:stop] = theirs[:, :, :, start:stop]

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(group.numel() * group.element_size() for group in self._groups)


class Sequence:
    """Token ids and the cache rows that stand for them.

    `tokens[i]` is the token of cache row i (-1 for a row fed as an embedding, or left out) and `positions[i]` its position id.
    """

    def __init__(self, owner: Scorer, cache: Cache):
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
