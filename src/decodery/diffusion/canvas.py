"""The canvas: a prompt, and behind it the positions to be filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.models.masked_diffusion import MaskedDiffusion


class Canvas:
    """Token ids of prompt and canvas, and when each position of the canvas was filled.

    Positions of the canvas are called by their offset: 0 is the first one behind the prompt. Row `prompt length + offset` of
    a forward over everything is theirs. A filled position never changes.
    """

    def __init__(self, prompt: Sequence[int], length: int, model: MaskedDiffusion):
        """length: number of positions to fill."""
        self.model = model
        self.prompt = len(prompt)
        self.length = length
        self.tokens: list[int] = [*prompt, *[model.mask_token_id] * length]
        """Prompt and canvas; the mask where a position is not filled."""
        self.step_of: list[int] = [-1] * length
        """The step that filled each offset, counted from 0; -1 where it is masked."""
        self.rows: dict[int, Tensor] = {}
        """Offset -> the raw scores [vocabulary] that its token was chosen by, where they are kept."""

    @property
    def answer(self) -> list[int]:
        """The tokens behind the prompt."""
        return self.tokens[self.prompt :]

    def masked(self, start: int = 0, end: int | None = None) -> list[int]:
        """The offsets in [start, end) that are not filled, ascending."""
        stop = self.length if end is None else end
        return [offset for offset in range(start, stop) if self.step_of[offset] < 0]

    def complete_until(self) -> int:
        """How many offsets from 0 on are filled without a gap."""
        return next((offset for offset, step in enumerate(self.step_of) if step < 0), self.length)

    def fill(self, offsets: Sequence[int], tokens: Sequence[int], step: int) -> None:
        """Put tokens at masked offsets. Raises ValueError for a filled offset and for a reserved token."""
        reserved = self.model.reserved
        for offset, token in zip(offsets, tokens, strict=True):
            if not 0 <= offset < self.length or self.step_of[offset] >= 0:
                raise ValueError(f"offset {offset} of a canvas of {self.length} is not masked, so it cannot be filled")
            if token in reserved:
                raise ValueError(f"token {token} is reserved and cannot stand in a text")
            self.tokens[self.prompt + offset] = token
            self.step_of[offset] = step

    def copy(self) -> Canvas:
        """An independent copy, to be filled by way of trial."""
        twin = Canvas((), 0, self.model)
        twin.prompt, twin.length = self.prompt, self.length
        twin.tokens, twin.step_of, twin.rows = list(self.tokens), list(self.step_of), dict(self.rows)
        return twin
