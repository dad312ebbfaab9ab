"""Keys and values as the native decoder reads them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Listing

import torch
from torch import Tensor

from decodery.models.native.build import library
from decodery.models.sequence import KeyValueCache


class PairedCache(KeyValueCache):
    """A cache whose values lie in pairs of rows, for each width the numbers of both side by side: so a processor's matrix unit
    takes them as they are, and no pass has to rearrange them."""

    together = 2

    def expect(self, rows: int) -> None:
        super().expect(rows + rows % 2)

    def both(self, index: int) -> Tensor:
        """Keys and values of layer `index` in the order of other caches, [2, heads, capacity, head width]; a copy."""
        keys, values = self._views[index]
        heads, capacity, width = values.shape
        apart = values.reshape(heads, capacity // 2, width, 2).transpose(2, 3).reshape(heads, capacity, width)
        return torch.stack([keys, apart])

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of layer `index` in the order of other caches, each [heads, capacity, head width]; copies."""
        keys, values = self.both(index)
        return keys, values

    def move(self, sources: Listing[int], start: int) -> None:
        rows = array("q", sources)
        heads, width = self._shapes[0]
        library().decodery_move(
            self.address(), len(self._shapes), heads, self.capacity, width, rows.buffer_info()[0], len(rows), start
        )
