"""Blocks of quantised files go into the native layout as they are: the same weights as if they were dequantised first."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decodery.models.native import binding
from decodery.models.native.build import library
from decodery.models.native.weights import ANY, EXACT, Precision, Weights
from decodery.models.pages import large
from decodery.models.weight_source import Blocks

pytestmark = pytest.mark.usefixtures("native_decoder")
KINDS = {"Q4_0": (2, 18), "Q4_1": (3, 20), "Q8_0": (8, 34)}
FORM = dict(zip(KINDS, (form.bytes for form in EXACT), strict=False))
TINY, SMALLEST, LARGEST = 0x0001, 0x0400, 0x7BFF
"""Half precision: the smallest number, the smallest of full precision, and the largest."""


class Stored:
    """Quantised matrices, in memory."""

    def __init__(self, **matrices: tuple[str, Tensor]):
        self.matrices, self.released, self.asked = matrices, set[str](), set[str]()

    def names(self) -> Iterable[str]:
        return self.matrices

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        self.asked.add(name)
        return numbers(*self.matrices[name]).to(dtype)

    def blocks(self, name: str) -> Blocks | None:
        kind, rows = self.matrices[name]
        number, size = KINDS[kind]
        return Blocks(number, rows, rows.shape[1] // size * 32)

    def release(self, name: str) -> None:
        self.released.add(name)


def numbers(kind: str, rows: Tensor) -> Tensor:
    with np.errstate(all="ignore"):
        return torch.from_numpy(dequantize(rows.numpy(), GGMLQuantizationType[kind]))


def blocks(kind: str, outputs: int, inputs: int, seed: int = 0, scales: Tensor | None = None) -> Tensor:
    """Random blocks, uint8 [outputs, bytes]. scales: bits of half precision, drawn from for scales and offsets."""
    generator = torch.Generator().manual_seed(seed)
    size = KINDS[kind][1]
    taken = torch.randint(256, (outputs, inputs // 32, size), generator=generator, dtype=torch.uint8)
    for place in (0, 2) if kind == "Q4_1" else (0,):
        if scales is None:
            half = (torch.randn(outputs, inputs // 32, generator=generator) * 0.02).half()
        else:
            half = scales[torch.randint(len(scales), (outputs, inputs // 32), generator=generator)].view(torch.float16)
        taken[:, :, place : place + 2] = half[..., None].view(torch.uint8)
    return taken.reshape(outputs, -1)


def bits(values: Iterable[int]) -> Tensor:
    return torch.tensor([value - (value >> 15 << 16) for value in values], dtype=torch.int16)


def read(
    source: Stored, *names: str, precision: Precision = "packed", threads: int = 1, in_turns: bool = False
) -> tuple[int, Tensor]:
    """The form that matrices are packed in, and what is unpacked of it."""
    shapes = [numbers(*source.matrices[name]).shape for name in names]
    outputs, inputs = sum(shape[0] for shape in shapes), shapes[0][1]
    weights = Weights(precision, large(2 * outputs * inputs + 4096), threads)
    matrix = weights.read(source, *names, in_turns=in_turns)
    assert weights.shortened == (matrix.bytes != ANY.bytes)
    return matrix.bytes, rows_of(matrix, inputs, torch.arange(outputs))


def rows_of(matrix: binding.MatrixStruct, inputs: int, ids: Tensor, factor: float = 1.0) -> Tensor:
    rows = torch.empty(len(ids), inputs, dtype=torch.bfloat16)
    library().decodery_rows(matrix, inputs, ids.data_ptr(), len(ids), factor, rows.data_ptr())
    return rows


def same(found: Tensor, expected: Tensor) -> bool:
    """Bit for bit, but that zeros have no sign."""
    return torch.equal((found + 0.0).view(torch.int16), (expected + 0.0).view(torch.int16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [16, 32, 48, 192])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_keep_every_weight(kind: str, outputs: int, threads: int) -> None:
    source = Stored(one=(kind, blocks(kind, outputs, 96)))
    form, found = read(source, "one", threads=threads)
    assert (form, source.asked, source.released) == (FORM[kind], set(), {"one"})
    assert same(found, numbers(*source.matrices["one"]).bfloat16())


@pytest.mark.parametrize("kind", KINDS)
def test_without_short_forms_blocks_are_dequantised(kind: str) -> None:
    source = Stored(one=(kind, blocks(kind, 64, 64)))
    form, found = read(source, "one", precision="native")
    assert (form, source.asked) == (ANY.bytes, {"one"})
    assert torch.equal(found, numbers(*source.matrices["one"]).bfloat16())


@pytest.mark.parametrize("kind", KINDS)
@given(
    scales=st.lists(
        st.sampled_from([0, 0x8000, TINY, 0x8000 | TINY, SMALLEST, LARGEST, 0x8000 | LARGEST])
        | st.integers(0, LARGEST),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_scale_that_half_precision_holds(kind: str, scales: list[int], seed: int) -> None:
    source = Stored(one=(kind, blocks(kind, 16, 64, seed, bits(scales))))
    form, found = read(source, "one")
    assert form == FORM[kind]
    assert same(found, numbers(*source.matrices["one"]).bfloat16())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0x7C00, 0xFC00, 0x7E00])
def test_scales_that_are_no_numbers_leave_a_matrix_as_it_is(kind: str, scale: int) -> None:
    rows = blocks(kind, 16, 64)
    rows.view(16, 2, -1)[3, 1, :2] = bits([scale]).view(torch.uint8)
    source = Stored(one=(kind, rows))
    form, found = read(source, "one")
    assert (form, source.asked) == (ANY.bytes, {"one"})
    assert torch.equal(found.nan_to_num(nan=7.0), numbers(kind, rows).bfloat16().nan_to_num(nan=7.0))


def test_matrices_one_below_the_other_and_in_turns() -> None:
    source = Stored(one=("Q4_0", blocks("Q4_0", 64, 64, 1)), two=("Q4_0", blocks("Q4_0", 64, 64, 2)))
    one, two = (numbers(*source.matrices[name]).bfloat16() for name in ("one", "two"))
    assert same(read(source, "one", "two")[1], torch.cat([one, two]))
    expected = torch.stack([one.view(4, 16, 64), two.view(4, 16, 64)], dim=1).view(128, 64)
    assert same(read(source, "one", "two", in_turns=True)[1], expected)
    assert source.asked == set()


def test_matrices_of_several_kinds_are_packed_by_their_numbers() -> None:
    source = Stored(one=("Q4_0", blocks("Q4_0", 32, 64, 1)), two=("Q8_0", blocks("Q8_0", 32, 64, 2)))
    _, found = read(source, "one", "two")
    assert source.asked == {"one", "two"}
    assert same(found, torch.cat([numbers(*source.matrices[name]).bfloat16() for name in ("one", "two")]))


@pytest.mark.parametrize("factor", [1.0, 11.3125])
@pytest.mark.parametrize("form", [form.bytes for form in EXACT])
def test_rows_of_each_form_times_a_factor(form: int, factor: float) -> None:
    kind = next((kind for kind, own in FORM.items() if own == form), "Q4_1")
    rows = blocks(kind, 192, 96)
    weights = Weights("native" if form == ANY.bytes else "packed", large(2 * 192 * 96))
    matrix = weights.read(Stored(one=(kind, rows)), "one")
    assert matrix.bytes == form
    ids = torch.tensor([191, 0, 17, 17, 64])
    expected = numbers(kind, rows).bfloat16()[ids] * torch.tensor(factor).bfloat16()
    assert same(rows_of(matrix, 96, ids, factor), expected)


@pytest.mark.parametrize(("kind", "share"), [("Q4_0", 1), ("Q4_1", 1), ("Q8_0", 36 / 34)])
def test_packed_weights_take_what_the_file_takes(kind: str, share: float) -> None:
    """Scales of Q8_0 alone are kept in float32."""
    rows = blocks(kind, 256, 512)
    weights = Weights("packed", large(2 * 256 * 512))
    weights.read(Stored(one=(kind, rows)), "one")
    assert weights.bytes == round(share * rows.nbytes)
