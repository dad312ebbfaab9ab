"""Fast-dLLM's block caches: keys and values outside the current block are reused until the next block begins.

Wu et al., Fast-dLLM, 2025, arXiv 2505.22618, section 3.2. Approximate from two layers on: what stands outside the block attends
to it, and the block changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from decodery.diffusion.caches.base import CacheRegime

if TYPE_CHECKING:
    from decodery.diffusion.canvas import Canvas


class PrefixCache(CacheRegime):
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
