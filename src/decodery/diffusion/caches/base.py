"""What a cache regime is, and the plain one: everything is computed anew each time.

Rows are those of prompt and canvas together. A forward computes a range of rows, writes their keys and values at their own
places, and sees those of all other rows as they were left by earlier forwards: stale, if a token they depend on has changed
since.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decodery.diffusion.canvas import Canvas


class CacheRegime(ABC):
    """One object per request; it may remember what it has frozen."""

    @abstractmethod
    def rows(self, canvas: Canvas, start: int, end: int | None) -> range:
        """The rows to compute. start, end: offsets of the current block; end is None for the forward that opens it.

        The first forward of all must compute every row. With a shifted model the rows may begin at the block's first: the
        scores of its first position stand in the row before, and are carried over from the last forward that had it.
        """


class NoCache(CacheRegime):
    """All rows, always: nothing is stale."""

    def rows(self, canvas: Canvas, start: int, end: int | None) -> range:
        return range(len(canvas.tokens))
