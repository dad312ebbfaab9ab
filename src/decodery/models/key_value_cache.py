"""Keys and values of sequences, in spans of rows that several sequences may hold.

A fork holds the very spans of the sequence that it was made of: nothing is copied. Whoever writes where another counts on
what is there writes to a span of its own, which begins with the block of that row; so at most BLOCK - 1 rows that both have
are copied, and none that lie in whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Listing
from itertools import pairwise
from typing import Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

BLOCK = 64
"""Spans begin at multiples of so many rows; room is made for as many."""


class Span:
    """Keys and values of consecutive rows in all layers, [group of equal layers][layers, 2, heads, capacity, head width].

    Layers of equal shape lie in one tensor, so that keeping an accepted path is one copy and not one per layer.
    first: the row of the sequences that the span begins with. capacity: how many rows there is room for. claims: the caches
    that hold the span, and one past the last row that each counts on. Who counts on all of them writes here.
    """

    def __init__(
        self, shapes: Listing[tuple[int, int]], dtype: torch.dtype, device: torch.device, first: int, capacity: int
    ):
        """shapes: (key/value heads, head width) of each layer."""
        self.first, self.capacity = first, capacity
        self.claims: WeakKeyDictionary[KeyValueCache, int] = WeakKeyDictionary()
        self.groups: list[Tensor] = []
        self.views: list[Tensor] = [None] * len(shapes)  # type: ignore[list-item]
        """Of each layer [2, heads, capacity, head width]."""
        self._cleared = 0
        for shape in dict.fromkeys(shapes):
            layers = [layer for layer, other in enumerate(shapes) if other == shape]
            group = torch.empty(len(layers), 2, shape[0], capacity, shape[1], dtype=dtype, device=device)
            for place, layer in enumerate(layers):
                self.views[layer] = group[place]
            self.groups.append(group)

    @property
    def stop(self) -> int:
        """One past the last row that there is room for."""
        return self.first + self.capacity

    @property
    def filled(self) -> int:
        """One past the last row that may hold something."""
        return self.first + self._cleared

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(group.numel() * group.element_size() for group in self.groups)

    def clear(self, stop: int) -> None:
        """Rows before `stop` will be read, or written one by one: what was in memory there must not be."""
        if stop <= self.filled:
            return
        ready = max(2 * BLOCK, self._cleared)
        while ready < stop - self.first:
            ready *= 2
        ready = min(ready, self.capacity)
        # Zeros, not what was there: a masked column still enters the product, and 0 * NaN would be NaN.
        for group in self.groups:
            group[:, :, :, self._cleared : ready] = 0
        self._cleared = ready

    def copy_rows(self, source: Span, start: int, stop: int) -> None:
        """Copy rows start..stop-1 of another span."""
        here, there = slice(start - self.first, stop - self.first), slice(start - source.first, stop - source.first)
        for mine, theirs in zip(self.groups, source.groups, strict=True):
            mine[:, :, :, here] = theirs[:, :, :, there]

    def wanted_by_others(self, cache: KeyValueCache, start: int) -> bool:
        """Whether a cache other than this has a claim to rows from `start` on."""
        return len(self.claims) > 1 and any(
            stop > max(start, self.first) for other, stop in self.claims.items() if other is not cache
        )


class KeyValueCache:
    """The keys and values of one sequence. Rows beyond the sequence's length are scratch.

    What is not shared lies in one span, so that attention may read it as it is. Where it is known how many rows may come, room
    for all of them is made at once, but not touched before it is needed; otherwise capacity doubles.
    """

    def __init__(self, shapes: Listing[tuple[int, int]], dtype: torch.dtype, device: torch.device):
        """shapes: (key/value heads, head width) of each layer."""
        self._shapes = tuple(shapes)
        self._dtype, self._device = dtype, device
        self._expected = 0
        self.spans: list[Span] = []
        """In the order of the rows; each ends where the next begins."""

    @property
    def capacity(self) -> int:
        """Rows there is room for."""
        return self.spans[-1].stop if self.spans else 0

    @property
    def bytes(self) -> int:
        """Memory held, alone or together with others, in bytes."""
        return sum(span.bytes for span in self.spans)

    def both(self, index: int) -> Tensor:
        """Keys and values of layer `index`, [2, heads, capacity, head width]; to read; a copy where there are several spans."""
        if len(self.spans) == 1:
            return self.spans[0].views[index]
        parts = [span.views[index][:, :, : stop - span.first] for span, stop in self.pieces()]
        return torch.cat(parts, dim=2)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of layer `index`, each [heads, capacity, head width]; to read, as `both`."""
        both = self.both(index)
        return both[0], both[1]

    def pieces(self) -> Iterable[tuple[Span, int]]:
        """Each span, and one past its last row that belongs to this sequence."""
        yield from ((span, after.first) for span, after in pairwise(self.spans))
        if self.spans:
            yield self.spans[-1], self.spans[-1].stop

    def expect(self, rows: int) -> None:
        """There will be at most so many rows: the first `reserve` makes room for all, and none is wasted."""
        self._expected = rows

    def reserve(self, rows: int, first: int = 0) -> None:
        """Make room for `rows` rows. Those from `first` on, which is at most the sequence's length, may be written then; they
        are in the last span."""
        if not self.spans:
            self.spans.append(self._allocate(0, self._room(0, rows)))
        last = self.spans[-1]
        alone, full = len(last.claims) == 1, rows > last.stop
        if first < last.first or last.wanted_by_others(self, first) or (full and not alone):
            self._part(first, rows)
        elif len(self.spans) > 1 and all(len(span.claims) == 1 for span in self.spans):
            self._part(0, rows)  # nobody else is left, and one span is read faster
        elif full:
            self._part(last.first, rows)
        last = self.spans[-1]
        last.claims[self] = last.stop
        last.clear(rows)

    def _room(self, first: int, rows: int) -> int:
        """How many rows a span has room for that begins with row `first` and holds all up to `rows`."""
        if rows <= self._expected and first == 0:
            return self._expected
        room = BLOCK if first else 2 * BLOCK
        while first + room < rows:
            room *= 2
        return min(room, self._expected - first) if rows <= self._expected else room

    def _part(self, row: int, rows: int) -> None:
        """Have a span of one's own from the block of `row` on, with what was there and room for `rows` rows."""
        before, last = list(self.pieces()), self.spans[-1]
        first, filled = row // BLOCK * BLOCK, min(last.claims[self], last.filled)
        own = self._allocate(first, self._room(first, max(rows, filled)))
        own.clear(filled)
        for span, stop in before:
            start, stop = max(span.first, first), min(stop, filled)
            if start < stop:
                own.copy_rows(span, start, stop)
            if span.first >= first:
                del span.claims[self]
            else:
                span.claims[self] = min(span.claims[self], first)
        self.spans = [*(span for span in self.spans if span.first < first), own]

    def _allocate(self, first: int, capacity: int) -> Span:
        """A further span, to write to."""
        span = Span(self._shapes, self._dtype, self._device, first, capacity)
        span.claims[self] = span.stop
        return span

    def move(self, sources: Listing[int], start: int) -> None:
        """Copy rows `sources`, which ascend and lie behind, to start, start + 1, … in every layer."""
        self.reserve(start + len(sources), start)
        last = self.spans[-1]
        for group in last.groups:
            # Mostly one row or two: to collect them first would take twice as long.
            for row, source in enumerate(sources, start):
                group.select(3, row - last.first).copy_(group.select(3, source - last.first))

    def copy(self, rows: int) -> Self:
        """A cache of the first `rows` rows, which it shares."""
        twin = type(self)(self._shapes, self._dtype, self._device)
        twin.expect(self._expected)
        twin.share(self, rows)
        return twin

    def share(self, other: Self, rows: int) -> None:
        """Hold the first `rows` rows of another cache of the same layers, and nothing else."""
        for span in self.spans:
            del span.claims[self]
        self.spans = []
        for span, stop in other.pieces():
            if span.first < rows:
                self.spans.append(span)
                span.claims[self] = min(stop, rows)

    def take(self, other: Self, start: int, stop: int) -> None:
        """Go on up to row `stop` as a cache of the same layers does, whose rows before `start` are this one's.

        Its rows are copied: attention reads faster what lies in one piece.
        """
        self.reserve(stop, start)
        for span, end in other.pieces():
            begin = max(start, span.first)
            if begin < min(stop, end):
                self.spans[-1].copy_rows(span, begin, min(stop, end))


def bytes_held(caches: Iterable[KeyValueCache]) -> int:
    """What the keys and values of some sequences take together, in bytes: what they share, once."""
    return sum({id(span): span.bytes for cache in caches for span in cache.spans}.values())
