"""FreeCache: keys and values of what is decoded are computed once more, and then never again.

FlashDLM, 2025, arXiv 2505.21467, section 3.2: those of clean tokens hardly change over later steps, since the masks behind them
contribute little. Approximate from two layers on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from decodery.diffusion.caches import CacheRegime

if TYPE_CHECKING:
    from decodery.diffusion.canvas import Canvas

FREEZE = ("after_clean_forward", "at_boundary")
"""When the rows of a finished block are frozen."""


class FreeCache(CacheRegime):
    """All rows once; then those that are not frozen. The prompt is frozen by the first forward, a block when it is complete.

    freeze: "after_clean_forward" computes a complete block once more, in the forward that opens the next one, so that what is
    frozen was computed from its tokens; "at_boundary" freezes what the block's last forward left, in which the tokens that it
    committed were still masks. shrink: a run of end tokens and pads at the end of the canvas is frozen as well, after a forward
    that saw them; it takes a rule that fills later blocks ahead to make one.
    """

    def __init__(self, freeze: str = FREEZE[0], shrink: bool = False):
        self.freeze, self.shrink = freeze, shrink
        self.frozen = 0
        """Rows before this one are never computed again."""
        self.tail: int | None = None
        """Nor are rows from this one on."""
        self._begun = False

    def rows(self, canvas: Canvas, start: int, end: int | None) -> range:
        total = len(canvas.tokens)
        first, last = self.frozen, total if self.tail is None else self.tail
        if self.shrink:
            self.tail = self._end_tokens(canvas)
        complete = canvas.prompt + start
        if not self._begun:
            self._begun, self.frozen = True, complete
            return range(total)
        if self.freeze == "at_boundary" and end is None:
            # The scores of a shifted model's first position stand in the row before it, which no earlier forward kept.
            first = max(self.frozen, complete - canvas.model.shift)
        self.frozen = max(self.frozen, complete)
        return range(first, last)

    def _end_tokens(self, canvas: Canvas) -> int:
        """The row at which the end tokens and pads that the canvas ends with begin; that of its end without any."""
        ends, row = (*canvas.model.end_token_ids, *canvas.model.filling_token_ids), len(canvas.tokens)
        while row > canvas.prompt and canvas.tokens[row - 1] in ends:
            row -= 1
        return row
