"""Weights as the native decoder reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from decodery.models.native import binding
from decodery.models.native.build import library

FORMS = (384, 576, 1024)
"""Bytes that a tile of 16 outputs by 32 inputs may take, the shortest first; the last form can hold any weights."""
LINES = 128
"""Tiles are read by whole pairs of cache lines."""


@dataclass(eq=False)
class Weights:
    """Packed weights, and the structures that point at them.

    forms: in which matrices may be kept, see FORMS. room: uint8, large enough for all matrices in the longest form; what is not
    used of it takes no memory. held: keeps the vectors alive. shortened: matrices kept in fewer bits.
    """

    forms: tuple[int, ...]
    room: Tensor
    held: list[Tensor] = field(default_factory=list)
    shortened: int = 0
    bytes: int = 0
    """What the packed matrices take; a pass of all layers reads as much."""

    def pack(self, *matrices: Tensor, together: int = 4) -> binding.MatrixStruct:
        """Matrices [outputs, inputs], one below the other, in the layout of the decoder: the shortest one that keeps every
        weight as it is. together: blocks of 16 outputs that a product takes at once."""
        lines = torch.cat(list(matrices)) if len(matrices) > 1 else matrices[0].contiguous()
        outputs, inputs = lines.shape
        if outputs % 16 or inputs % 32:
            raise ValueError(f"a matrix of {outputs} x {inputs} does not divide into tiles of 16 x 32")
        group = next(size for size in (4, 2, 1) if size <= together and outputs % (16 * size) == 0)
        if self.bytes + 2 * outputs * inputs > len(self.room):
            raise ValueError(f"a matrix of {outputs} x {inputs} does not fit beside the others")
        place = self.room.data_ptr() + self.bytes
        for form in self.forms:
            if library().decodery_pack(lines.data_ptr(), outputs, inputs, form, group, place):
                break
        self.bytes += -(outputs * inputs // 512 * form // -LINES) * LINES
        self.shortened += form != FORMS[-1]
        return binding.MatrixStruct(place, form, group)

    def floats(self, *vectors: Tensor | None) -> int | None:
        """Address of vectors, one after the other, as float32; None where there are none."""
        given = [vector.detach().float() for vector in vectors if vector is not None]
        if not given:
            return None
        if len(given) != len(vectors):
            raise ValueError("some parts of a layer have a bias and some have not")
        joined = torch.cat(given).contiguous()
        self.held.append(joined)
        return joined.data_ptr()


def norm_weight(norm: nn.Module) -> Tensor:
    """What a norm multiplies with, [width] float32: its weight, or in some families one more. Raises ValueError where it is
    neither."""
    weight: Any = norm.weight
    weight = weight.detach().float()
    scale: Tensor = norm(torch.ones_like(weight))
    for offset in (0.0, 1.0):
        if torch.allclose(scale, weight + offset, rtol=1e-2, atol=1e-4):
            return weight + offset
    raise ValueError(f"{type(norm).__name__} is another kind of norm")


def interleaved(gate: Tensor, up: Tensor) -> Tensor:
    """Rows of two matrices in turns of 16."""
    parts = torch.stack([gate.reshape(-1, 16, *gate.shape[1:]), up.reshape(-1, 16, *up.shape[1:])], dim=1)
    return parts.reshape(-1, *gate.shape[1:])
