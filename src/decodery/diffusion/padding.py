"""Reading canvases that are filled up with pads: a model of rainbow padding writes one end token, and pads behind it.

Kim et al., arXiv 2510.03680. The model's description names its pads (`MaskedDiffusion.filling_token_ids`). They are predicted
like any token, but never text: `decodery.training.rainbow_padding` writes such canvases, this reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CanvasReading:
    """What a filled canvas says.

    offsets, tokens: of the text, ascending; without the end token. end: offset of the end token, None without one. stray: pads
    that stood within the text. padded: whether a missing end was told by a pad.
    """

    offsets: list[int]
    tokens: list[int]
    end: int | None
    stray: int = 0
    padded: bool = False

    @property
    def output(self) -> list[int]:
        """The offsets of text and end token."""
        return self.offsets if self.end is None else [*self.offsets, self.end]


def truncate(canvas: Sequence[int], ends: Collection[int], pads: Collection[int]) -> CanvasReading:
    """The text on a canvas: what stands before the first end token, without stray pads; without an end token, what stands
    before the first pad."""
    end = next((offset for offset, token in enumerate(canvas) if token in ends), None)
    if end is None:
        first = next((offset for offset, token in enumerate(canvas) if token in pads), len(canvas))
        return CanvasReading(list(range(first)), list(canvas[:first]), None, padded=first < len(canvas))
    offsets = [offset for offset in range(end) if canvas[offset] not in pads]
    return CanvasReading(offsets, [canvas[offset] for offset in offsets], end, stray=end - len(offsets))
