"""Weights as the native decoder reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from decodery.models.native import binding
from decodery.models.native.build import library
from decodery.models.weight_source import Blocks, WeightSource

FORMS = (288, 320, 576, 1024)
"""Bytes that a tile of 16 outputs by 32 inputs may take, the shortest first; the last form can hold any weights."""
LINES = 128
"""Tiles are read by whole pairs of cache lines."""
NUMBERS = 30
"""GGUF's number for bfloat16, as which matrices of numbers are handed over."""
FORM_OF = {2: FORMS[0], 3: FORMS[1], 8: FORMS[2]}
"""Of GGUF's Q4_0, Q4_1 and Q8_0, by their numbers: the form that holds the very numbers of their blocks."""


@dataclass(eq=False)
class Weights:
    """Packed weights, and the structures that point at them.

    forms: in which matrices may be kept, see FORMS. room: uint8, large enough for all matrices in the longest form; what is not
    used of it takes no memory. threads: that pack. held: keeps the vectors alive. shortened: matrices kept in fewer bits.
    """

    forms: tuple[int, ...]
    room: Tensor
    threads: int = 1
    held: list[Tensor] = field(default_factory=list)
    shortened: int = 0
    bytes: int = 0
    """What the packed matrices take; a pass of all layers reads as much."""

    def read(
        self, source: WeightSource, *names: str, together: int = 4, in_turns: bool = False
    ) -> binding.MatrixStruct:
        """Matrices of a source, see `pack`. Quantised ones keep their numbers, where a form holds these."""
        blocks = [source.blocks(name) for name in names] if len(self.forms) > 1 else []
        given = [part for part in blocks if part is not None]
        if given and len(given) == len(names) and len({part.kind for part in given}) == 1:
            form = FORM_OF.get(given[0].kind)
            packed = self._pack_as(given, form, together, in_turns) if form in self.forms else None
            if packed is not None:
                for name in names:
                    source.release(name)
                return packed
        del blocks, given
        return self.pack(*(source.tensor(name, torch.bfloat16) for name in names), together=together, in_turns=in_turns)

    def pack(self, *matrices: Tensor, together: int = 4, in_turns: bool = False) -> binding.MatrixStruct:
        """Matrices [outputs, inputs] bfloat16, one below the other, in the layout of the decoder: the shortest form that keeps
        every weight as it is. together: blocks of 16 outputs that a product takes at once. in_turns: 16 outputs of each matrix
        follow each other."""
        numbers = [Blocks(NUMBERS, matrix.contiguous(), matrix.shape[1]) for matrix in matrices]
        for form in self.forms:
            packed = self._pack_as(numbers, form, together, in_turns)
            if packed is not None:
                return packed
        raise AssertionError("the last form holds any weights")

    def _pack_as(self, parts: Listing[Blocks], form: int, together: int, in_turns: bool) -> binding.MatrixStruct | None:
        """In tiles of `form` bytes; None where these would change a weight."""
        inputs = parts[0].inputs
        outputs = sum(len(part.rows) for part in parts)
        if any(len(part.rows) % 16 for part in parts) or inputs % 32:
            raise ValueError(f"a matrix of {outputs} x {inputs} does not divide into tiles of 16 x 32")
        group = next(size for size in (4, 2, 1) if size <= together and outputs % (16 * size) == 0)
        if self.bytes + 2 * outputs * inputs > len(self.room):
            raise ValueError(f"a matrix of {outputs} x {inputs} does not fit beside the others")
        starts = [
            range(part.rows.data_ptr(), part.rows.data_ptr() + part.rows.nbytes, 16 * part.rows.nbytes // len(part.rows))
            for part in parts
        ]  # fmt: skip
        order = (
            [one for turn in zip(*starts, strict=True) for one in turn] if in_turns else [i for s in starts for i in s]
        )
        place = self.room.data_ptr() + self.bytes
        addresses = (ctypes.c_void_p * len(order))(*order)
        if not library().decodery_pack(addresses, outputs, inputs, parts[0].kind, form, group, place, self.threads):
            return None
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


def interleaved(gate: Tensor, up: Tensor) -> Tensor:
    """Two vectors in turns of 16 numbers."""
    return torch.stack([gate.reshape(-1, 16), up.reshape(-1, 16)], dim=1).reshape(-1)
