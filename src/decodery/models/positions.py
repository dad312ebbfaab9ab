"""What stands for transformers' cache in a packed pass: it keeps nothing, and tells how many tokens stand before each row."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class RowPositions:
    """Families that count from their cache's length where a row stands, such as Llama 4, get the right place for each row.

    positions: [rows]. transformers adds the length to 0, 1, 2, …: it is a tensor here, whose sum with these are the positions.
    """

    is_compileable = False
    is_initialized = True

    def __init__(self, positions: Tensor):
        self.offsets = positions - positions.new_ones(positions.shape).cumsum(0) + 1

    def get_seq_length(self, layer_idx: int = 0) -> Tensor:
        return self.offsets

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return keys, values
