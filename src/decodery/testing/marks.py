"""Which layers have written which cache rows: a stand-in for keys and values that notices stale ones."""

from __future__ import annotations

from collections.abc import Sequence as Listing

import numpy as np

from decodery.models.forward import Attend, Forward, Slots


class LayerMarks:
    """The cache of a scorer without a network. Keeps for each layer and row when it was written.

    A pass may start in the first layers and be finished by the others later. In between, the rows stand in the sequence
    although the later layers have not written them, or still hold what was there before. A layer that reads such a row is
    an error here, where a network would just give other scores.
    """

    def __init__(self, layers: int):
        self.layers = layers
        self._versions = np.zeros(64, dtype=np.int64)
        """[rows] when the first layers wrote the row; 0: never."""
        self._written = np.zeros((layers, 64), dtype=np.int64)
        """[layers, rows] the version of the row that each layer has written."""
        self._clock = 0

    def expect(self, rows: int) -> None:
        pass

    def reserve(self, rows: int) -> None:
        while len(self._versions) < rows:
            self._versions = np.concatenate([self._versions, np.zeros_like(self._versions)])
            self._written = np.concatenate([self._written, np.zeros_like(self._written)], axis=1)

    def move(self, sources: Listing[int], start: int) -> None:
        rows = list(sources)
        self._versions[start : start + len(rows)] = self._versions[rows]
        self._written[:, start : start + len(rows)] = self._written[:, rows]

    def copy(self, rows: int) -> LayerMarks:
        twin = LayerMarks(self.layers)
        twin._versions, twin._written, twin._clock = self._versions.copy(), self._written.copy(), self._clock
        return twin

    def take(self, other: LayerMarks, start: int, stop: int) -> None:
        self.reserve(stop)
        other.reserve(stop)
        # Versions are of one cache alone; a layer that was not current there must not be here.
        self._clock += 1
        current = other._written[:, start:stop] == other._versions[start:stop]
        self._versions[start:stop] = self._clock
        self._written[:, start:stop] = np.where(current, self._clock, 0)

    def check(self, forward: Forward) -> None:
        """Assert that all cached rows that the forward sees were written by the attentions that it runs."""
        cached = forward.sequence.length
        self.reserve(forward.columns())
        reads = np.ones(cached, dtype=bool)
        if not isinstance(forward.attend, Attend):
            reads = forward.visible().any(dim=0)[:cached].numpy()
        if not isinstance(forward.slots, Slots):
            reads[[slot for slot in forward.slots if slot < cached]] = False
        running = self._attentions(forward)
        stale = (self._written[running, :cached] != self._versions[:cached]) & reads
        assert not stale.any(), f"rows {np.flatnonzero(stale.any(axis=0)).tolist()} are stale in layers that read them"

    def mark(self, forward: Forward) -> None:
        """The forward has written its rows."""
        slots = list(forward.written_slots())
        self.reserve(max(slots) + 1)
        if forward.layers.start == 0:
            self._clock += 1
            self._versions[slots] = self._clock
        self._written[np.ix_(self._attentions(forward), slots)] = self._versions[slots]

    def _attentions(self, forward: Forward) -> list[int]:
        skipped = forward.layers.skip_attention
        return [layer for layer in forward.layers.indices(self.layers) if layer not in skipped]
