"""Keys and values as the native decoder reads them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Listing
from typing import Self

import torch
from torch import Tensor

from decodery.models.key_value_cache import BLOCK, KeyValueCache, Span
from decodery.models.native.build import library


class PairedCache(KeyValueCache):
    """A cache whose values lie in pairs of rows, for each width the numbers of both side by side: so a processor's matrix unit
    takes them as they are, and no pass has to rearrange them.

    It lies in many small spans of one size, which the decoder finds by a table; so it takes no room before it is needed, and
    what several sequences share costs nothing to read.
    """

    def __init__(self, shapes: Listing[tuple[int, int]], dtype: torch.dtype, device: torch.device):
        super().__init__(shapes, dtype, device)
        if len(set(self._shapes)) > 1:
            raise ValueError("the layers' keys differ in shape, so they do not lie in one tensor")
        self._table = array("q")
        """Where each span begins."""

    def table(self) -> int:
        """Where the addresses of the spans stand. They hold until rows are reserved, shared or taken."""
        return self._table.buffer_info()[0]

    def both(self, index: int) -> Tensor:
        """Keys and values of layer `index` in the order of other caches, [2, heads, capacity, head width]; a copy."""
        keys, values = super().both(index)
        heads, capacity, width = values.shape
        apart = values.reshape(heads, capacity // 2, width, 2).transpose(2, 3).reshape(heads, capacity, width)
        return torch.stack([keys, apart])

    def reserve(self, rows: int, first: int = 0) -> None:
        for place in range(first // BLOCK, min(-(-rows // BLOCK), len(self.spans))):
            span = self.spans[place]
            if span.wanted_by_others(self, first):
                self.spans[place] = super()._allocate(span.first, BLOCK)
                self.spans[place].copy_rows(span, span.first, span.stop)
                self._table[place] = self.spans[place].groups[0].data_ptr()
                del span.claims[self]
            else:
                span.claims[self] = span.stop
        while self.capacity < rows:
            self.spans.append(self._allocate(self.capacity, BLOCK))
            self._table.append(self.spans[-1].groups[0].data_ptr())

    def _allocate(self, first: int, capacity: int) -> Span:
        span = super()._allocate(first, capacity)
        span.clear(span.stop)
        return span

    def share(self, other: Self, rows: int) -> None:
        super().share(other, rows)
        self._table = other._table[: len(self.spans)]

    def take(self, other: Self, start: int, stop: int) -> None:
        """Go on up to row `stop` as a cache of the same layers does, whose rows before `start` are this one's: share them."""
        self.share(other, stop)

    def move(self, sources: Listing[int], start: int) -> None:
        self.reserve(start + len(sources), start)
        rows = array("q", sources)
        heads, width = self._shapes[0]
        library().decodery_move(self.table(), len(self._shapes), heads, width, rows.buffer_info()[0], len(rows), start)
