"""What a block schedule is, and blocks of fixed length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from decodery.diffusion.canvas import Canvas
    from decodery.diffusion.laws import Laws


class BlockSchedule(ABC):
    """Where blocks end. A block is filled before the next one is begun."""

    looks_ahead: ClassVar[bool] = False
    """Whether `end` looks at the laws of the forward that opens the block, over all masked offsets from its start on."""

    @abstractmethod
    def end(self, canvas: Canvas, start: int, laws: Laws | None) -> int:
        """The end of the block that begins at offset `start`, in (start, canvas.length]. laws: where `looks_ahead`."""


@dataclass(frozen=True)
class FixedBlocks(BlockSchedule):
    """Blocks of equal length; the last one may be shorter. With the length of the canvas there are no blocks."""

    length: int

    def end(self, canvas: Canvas, start: int, laws: Laws | None) -> int:
        return min(start + self.length, canvas.length)
