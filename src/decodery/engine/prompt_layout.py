"""A prompt that is not read from left to right: parts side by side, as a set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class PromptLayout:
    """Positions and visibility of a prompt's rows.

    positions: [n] position ids. visible: [n, n] bool; row i sees column j. Every row sees itself and nothing behind it; the
    last one, which the output hangs on, sees all and stands one position after the row before it. Raises ValueError otherwise.
    """

    positions: Sequence[int]
    visible: Tensor

    def __post_init__(self) -> None:
        count = len(self.positions)
        if tuple(self.visible.shape) != (count, count) or count < 2:
            raise ValueError(f"{count} rows need a mask [{count}, {count}], not {list(self.visible.shape)}")
        if not bool(self.visible.diagonal().all()) or bool(self.visible.triu(1).any()):
            raise ValueError("every row must see itself, and none may see a row behind it")
        if not bool(self.visible[-1].all()) or self.positions[-1] != self.positions[-2] + 1:
            raise ValueError("the last row must see all rows, and stand one position after the row before it")
