"""Weights as the native decoder reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from decodery.models.native import binding
from decodery.models.native.build import library
from decodery.models.rounding import NO_SCALE, in_blocks
from decodery.models.weight_source import Blocks, WeightSource

Precision = Literal["native", "packed", "integer"]


@dataclass(frozen=True)
class Form:
    """How the weights of a matrix lie.

    number: 0, or what decoder.h calls its form: whole numbers, for rows rounded to eight bits. bytes: of a tile of 16 outputs
    by 32 inputs.
    """

    number: int
    bytes: int


ANY = Form(0, 1024)
"""Holds any weights, as bfloat16."""
EXACT = (Form(0, 288), Form(0, 320), Form(0, 576), ANY)
"""Those for rows in bfloat16, the shortest first."""
EXACT_OF = {2: EXACT[0], 3: EXACT[1], 8: EXACT[2]}
"""Of GGUF's Q4_0, Q4_1 and Q8_0, by their numbers: the form that holds the very numbers of their blocks."""
SUPER_BLOCKS = (12, 13, 14)
"""Kinds of blocks of 256 inputs."""
SEARCHED = (2, 3, 8)
"""Kinds whose forms of whole numbers are tried where weights come as bfloat16, the shortest first."""
LINES = 128
"""Tiles are read by whole pairs of cache lines."""
NUMBERS = 30
"""GGUF's number for bfloat16, as which matrices of numbers are handed over."""


@cache
def form_of(kind: int) -> Form | None:
    """The form of whole numbers that holds what GGUF calls kind `kind`; None: there is none."""
    number = library().decodery_form(kind)
    return Form(number, library().decodery_tile(number)) if number else None


MATRICES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "queries": (("self_attn.q_proj",), {}),
    "keys": (("self_attn.k_proj",), {}),
    "values": (("self_attn.v_proj",), {}),
    "output": (("self_attn.o_proj",), {"together": 2}),
    "gate_and_up": (("mlp.gate_proj", "mlp.up_proj"), {"in_turns": True}),
    "down": (("mlp.down_proj",), {"together": 2}),
}
"""Of a layer: which products the decoder computes as one, and how these are packed, see `Weights.pack`."""


def most_bytes(weights: int, matrices: int) -> int:
    """Room in which so many weights have place in any form: the last takes two bytes a weight."""
    return 2 * weights + LINES * matrices


_compared = set[tuple[int, ...]]()
"""What was compared in this process: the kinds of products, and their numbers of inputs."""


def compare(blocks: Listing[Blocks], matrix: binding.MatrixStruct) -> None:
    """Raise ValueError unless a packed matrix multiplies as the numbers do that it was packed from.

    blocks: 16 outputs each, the matrix's first ones, as many as it takes at once. The row is one that eight bits hold as it is.
    """
    from decodery.models.gguf.dequantisation import UNPACK

    inputs = blocks[0].inputs
    row = (((torch.arange(inputs) * 37 % 255) - 127) / 64).bfloat16()
    row.view(-1, 32)[:, 0] = 127 / 64
    found = torch.empty(len(blocks), 16)
    library().decodery_product(matrix, found.numel(), inputs, row.data_ptr(), 1, found.data_ptr())
    for part, sums in zip(blocks, found, strict=True):
        kind, rows = part.rounded or part.kind, part.rows.contiguous()
        if kind != NUMBERS:
            rows = in_blocks(rows, kind) if part.rounded else rows
            rows = UNPACK[kind](rows.view(16 * inputs // (256 if kind in SUPER_BLOCKS else 32), -1))
        weights = rows.reshape(16, inputs)
        if not matrix.form:
            weights = weights.bfloat16()  # as which passes take them
        products = weights * row.double()
        size = products.abs().sum(1)
        near = (sums - products.sum(1)).abs() <= 1e-5 * size + 1e-30
        if not bool(near[size < 1e37].all()):  # others leave the range of float32
            raise ValueError(f"{inputs} weights of GGUF's kind {kind} are not multiplied here as their numbers are")


@dataclass(eq=False)
class Weights:
    """Packed weights, and the structures that point at them.

    precision: how matrices may be kept: "native", all in bfloat16; "packed", in four or eight bits where these hold their
    weights without loss; "integer", as whole numbers, for rows rounded to eight bits, wherever a form holds them. room:
    uint8, large enough for all matrices in bfloat16; what is not used of it takes no memory. threads: that pack. held: keeps
    the vectors alive. shortened: matrices kept in fewer bits.
    """

    precision: Precision
    room: Tensor
    threads: int = 1
    held: list[Tensor] = field(default_factory=list)
    rounded: int = 0
    """Matrices whose numbers were rounded on the way."""
    shortened: int = 0
    integer: int = 0
    """Matrices of whole numbers."""
    bytes: int = 0
    """What the packed matrices take; a pass of all layers reads as much."""
    ready: dict[tuple[str, ...], binding.MatrixStruct] = field(default_factory=dict)
    """Matrices that were packed before anybody read them."""

    def read(
        self, source: WeightSource, *names: str, together: int = 4, in_turns: bool = False
    ) -> binding.MatrixStruct:
        """Matrices of a source, see `pack`. Quantised ones keep their numbers, where a form holds these."""
        if names in self.ready:
            return self.ready.pop(names)
        blocks = [source.blocks(name) for name in names] if self.precision != "native" else []
        given = [part for part in blocks if part is not None]
        if given and len(given) == len(names) and len({(part.kind, part.rounded) for part in given}) == 1:
            kind = given[0].rounded or given[0].kind
            form = form_of(kind) if self.precision == "integer" else EXACT_OF.get(kind)
            packed = self._pack_as(given, form, together, in_turns) if form is not None else None
            if packed is not None:
                self.rounded += given[0].rounded > 0
                for name in names:
                    source.release(name)
                return packed
            if given[0].rounded:
                raise ValueError(f"{' or '.join(names)} cannot be rounded: {NO_SCALE}")
        del blocks, given
        return self.pack(*(source.tensor(name, torch.bfloat16) for name in names), together=together, in_turns=in_turns)

    def _forms(self) -> tuple[Form, ...]:
        """What is tried for weights in bfloat16, one after the other."""
        if self.precision == "integer":
            return (*(form for kind in SEARCHED if (form := form_of(kind)) is not None), ANY)
        return EXACT if self.precision == "packed" else (ANY,)

    def pack(self, *matrices: Tensor, together: int = 4, in_turns: bool = False) -> binding.MatrixStruct:
        """Matrices [outputs, inputs] bfloat16, one below the other, in the layout of the decoder: the shortest form that keeps
        every weight as it is. together: blocks of 16 outputs that a product takes at once. in_turns: 16 outputs of each matrix
        follow each other."""
        numbers = [Blocks(NUMBERS, matrix.contiguous(), matrix.shape[1]) for matrix in matrices]
        for form in self._forms():
            packed = self._pack_as(numbers, form, together, in_turns)
            if packed is not None:
                return packed
        raise AssertionError("the last form holds any weights")

    def _pack_as(
        self, parts: Listing[Blocks], form: Form, together: int, in_turns: bool
    ) -> binding.MatrixStruct | None:
        """In tiles of a form; None where these would change a weight."""
        inputs = parts[0].inputs
        outputs = sum(len(part.rows) for part in parts)
        if any(len(part.rows) % 16 for part in parts) or inputs % 32:
            raise ValueError(f"a matrix of {outputs} x {inputs} does not divide into tiles of 16 x 32")
        group = (
            1 if form.number else next(size for size in (4, 2, 1) if size <= together and outputs % (16 * size) == 0)
        )
        if self.bytes + 2 * outputs * inputs > len(self.room):
            raise ValueError(f"a matrix of {outputs} x {inputs} does not fit beside the others")
        stride = parts[0].rows.nbytes // len(parts[0].rows)
        starts = [[(part, start) for start in range(0, len(part.rows), 16)] for part in parts]
        order = list(chain(*(zip(*starts, strict=True) if in_turns else starts)))
        matrix = binding.MatrixStruct(self.room.data_ptr() + self.bytes, form.bytes, group, form.number)
        bases = {id(part): part.rows.data_ptr() for part in parts}
        addresses = (ctypes.c_void_p * len(order))(*(bases[id(part)] + start * stride for part, start in order))
        first = parts[0]
        if not library().decodery_pack(
            addresses, outputs, inputs, first.kind, first.rounded, stride, matrix, self.threads
        ):
            return None
        product = (first.kind, first.rounded, form.number, form.bytes, group, inputs)
        # Whole numbers found in numbers give these once more only where they are rounded to bfloat16.
        if (first.kind != NUMBERS or not form.number or first.rounded) and product not in _compared:
            begin = [Blocks(part.kind, part.rows[i : i + 16], inputs, part.rounded) for part, i in order[:group]]
            compare(begin, matrix)
            _compared.add(product)
        self.bytes += -(outputs * inputs // 512 * form.bytes // -LINES) * LINES
        self.shortened += form != ANY
        self.integer += form.number > 0
        return matrix

    def precision_reached(self) -> Precision:
        """How the matrices are kept in fact."""
        return "integer" if self.integer else "packed" if self.shortened else "native"

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
