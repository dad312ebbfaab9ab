"""Where keys and values that lie in several spans are put side by side, for attention that reads them in one piece."""

from __future__ import annotations

import torch
from torch import Tensor

from decodery.models.key_value_cache import KeyValueCache, Span


class Workbench:
    """Room for the keys and values of one sequence in one layer.

    Forks come to it one after the other, and what one begins with as the one before stays where it is: so a beginning that many
    share is copied once for each layer, and not for each of them.
    """

    def __init__(self) -> None:
        self._room: Tensor | None = None
        self._layer = -1
        self._laid: list[tuple[Span, int]] = []
        """The spans that lie here, and one past the last row of each."""

    def lay(self, cache: KeyValueCache, layer: int, columns: int, padded: int) -> Tensor:
        """Keys and values [2, heads, padded, head width] of the first `columns` rows of a cache, and zeros. Good until the next
        call."""
        own = cache.spans[-1].views[layer]
        heads, width = own.shape[1], own.shape[3]
        room = self._room
        if room is None or room.shape[2] < padded or (room.shape[1], room.shape[3]) != (heads, width):
            room = self._room = torch.empty(2, heads, padded, width, dtype=own.dtype, device=own.device)
            self._laid = []
        if layer != self._layer:
            self._layer, self._laid = layer, []
        beginning = list(cache.pieces())[:-1]
        same = 0
        while same < min(len(beginning), len(self._laid)) and beginning[same] == self._laid[same]:
            same += 1
        for span, stop in beginning[same:]:
            room[:, :, span.first : stop] = span.views[layer][:, :, : stop - span.first]
        first = cache.spans[-1].first
        room[:, :, first:columns] = own[:, :, : columns - first]
        room[:, :, columns:padded] = 0
        self._laid = beginning
        return room[:, :, :padded]
