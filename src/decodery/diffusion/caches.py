"""Cache regimes: which rows of prompt and canvas a forward computes anew.

Rows are those of prompt and canvas together. A forward computes a range of rows, writes their keys and values at their own
places, and sees those of all other rows as they were left by earlier forwards: stale, if a token they depend on has changed
since. The block caches are Fast-dLLM's (Wu et al., 2025, arXiv 2505.22618, section 3.2): approximate from two layers on, since
what stands outside the block attends to it, and the block changes.
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


class EveryRow(CacheRegime):
    """All rows, always: nothing is stale."""

    def rows(self, canvas: Canvas, start: int, end: int | None) -> range:
        return range(len(canvas.tokens))


class BlockPrefixCache(CacheRegime):
    """All rows when a block begins; then those from its start on. Only what stands before the block is reused."""

    def rows(self, canvas: Canvas, start: int, end: int | None) -> range:
        first = 0 if end is None else canvas.prompt + start
        return range(first, len(canvas.tokens))


class DualCache(CacheRegime):
    """All rows when a block begins; then those of the block alone. The masks behind it are reused too."""

    def rows(self, canvas: Canvas, start: int, end: int | None) -> range:
        if end is None:
            return range(len(canvas.tokens))
        return range(canvas.prompt + start, canvas.prompt + end)
