"""Products of whole numbers: what is computed, for every form, every number of rows and every set of instructions."""

from __future__ import annotations

import ctypes
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decodery.models.native import binding, build
from decodery.models.native.weights import ANY, Weights, compare, form_of
from decodery.models.pages import large
from decodery.models.weight_source import Blocks

pytestmark = pytest.mark.usefixtures("native_decoder")
KINDS = {
    "Q4_0": (18, 32, (0,)),
    "Q4_1": (20, 32, (0, 2)),
    "Q5_0": (22, 32, (0,)),
    "Q5_1": (24, 32, (0, 2)),
    "Q8_0": (34, 32, (0,)),
    "Q4_K": (144, 256, (0, 2)),
    "Q5_K": (176, 256, (0, 2)),
    "Q6_K": (210, 256, (208,)),
    "IQ4_NL": (18, 32, (0,)),
}
"""Bytes and inputs of a block, and where its numbers in half precision stand."""


def blocks(kind: str, outputs: int, inputs: int, seed: int = 0) -> Tensor:
    """Random blocks, uint8 [outputs, bytes]."""
    size, step, halves = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)
    taken = torch.randint(256, (outputs, inputs // step, size), generator=generator, dtype=torch.uint8)
    for place in halves:
        half = (torch.randn(outputs, inputs // step, generator=generator) * 0.01).half()
        taken[:, :, place : place + 2] = half[..., None].view(torch.uint8)
    return taken.reshape(outputs, -1)


def numbers(kind: str, rows: Tensor) -> Tensor:
    return torch.from_numpy(dequantize(rows.numpy(), GGMLQuantizationType[kind]))


def packed(kind: str, rows: Tensor, inputs: int, threads: int = 1) -> tuple[Weights, binding.MatrixStruct]:
    weights = Weights("integer", large(2 * len(rows) * inputs + 4096), threads)
    given_blocks = Blocks(GGMLQuantizationType[kind].value, rows, inputs)
    form = form_of(given_blocks.kind)
    assert form is not None
    matrix = weights._pack_as([given_blocks], form, 4, False)
    assert matrix is not None
    return weights, matrix


def product(library: ctypes.CDLL, matrix: binding.MatrixStruct, outputs: int, rows: Tensor) -> Tensor:
    found = torch.empty(len(rows), outputs)
    assert not library.decodery_product(
        matrix, outputs, rows.shape[1], rows.contiguous().data_ptr(), len(rows), found.data_ptr()
    )
    return found


def in_eight_bits(rows: Tensor) -> Tensor:
    """Rows as the products see them: 32 neighbours are whole multiples of 1/127 of the largest."""
    cut = rows.double().unflatten(1, (-1, 32))
    step = (cut.float().abs().amax(2, keepdim=True) / 127).double()
    inverse = (127 / cut.float().abs().amax(2, keepdim=True).clamp(min=1e-30)).double()
    return ((cut * inverse).float().round().double() * step).flatten(1)


def rows_of(count: int, inputs: int, seed: int = 1) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed)).bfloat16()


def every_library() -> list[ctypes.CDLL]:
    found = [build.ready(one) for one in build.usable()]
    assert None not in found
    return [library for library in found if library is not None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_kind_keeps_its_weights(kind: str, threads: int) -> None:
    rows = blocks(kind, 48, 512)
    _, matrix = packed(kind, rows, 512, threads)
    ids, found = torch.arange(48), torch.empty(48, 512, dtype=torch.bfloat16)
    build.library().decodery_rows(matrix, 512, ids.data_ptr(), 48, 1.0, found.data_ptr())
    assert torch.equal(found + 0.0, numbers(kind, rows).bfloat16() + 0.0)
    build.library().decodery_rows(matrix, 512, ids.data_ptr(), 48, 3.0, found.data_ptr())
    assert torch.equal(found + 0.0, (numbers(kind, rows).bfloat16().float() * 3).bfloat16() + 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_rounded_rows(kind: str) -> None:
    weights, inputs = blocks(kind, 64, 512, 2), rows_of(5, 512)
    _, matrix = packed(kind, weights, 512)
    expected = in_eight_bits(inputs) @ numbers(kind, weights).double().T
    for library in every_library():
        found = product(library, matrix, 64, inputs)
        assert float((found.double() - expected).abs().max()) < 2e-6 * float(expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_in_any_company_and_on_any_processor(kind: str) -> None:
    width = 512 if KINDS[kind][1] == 256 else 19 * 32
    weights, inputs = blocks(kind, 48, width, 3), rows_of(21, width)
    _, matrix = packed(kind, weights, width)
    whole = product(build.library(), matrix, 48, inputs)
    for library in every_library():
        for cuts in ([0, 21], [0, 1, 2, 4, 7, 11, 16, 21], [0, 8, 16, 21], [0, 12, 21], [0, 18, 21], range(22)):
            parts = [product(library, matrix, 48, inputs[start:stop]) for start, stop in pairwise(cuts)]
            assert torch.equal(torch.cat(parts), whole)


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=32, max_size=32),
    st.sampled_from([1.0, 1e-30, 1e-38, 0.0, 100.0]),
)
@settings(max_examples=100, deadline=None)
def test_rows_of_any_size_are_rounded(values: list[float], factor: float) -> None:
    """Identity as the matrix: what comes back is the row, rounded to 1/254 of its largest number."""
    row = (torch.tensor([values]) * factor).bfloat16()
    matrix_rows = torch.eye(32).bfloat16()
    weights = Weights("integer", large(2 * 32 * 32 + 4096))
    matrix = weights.pack(matrix_rows)
    assert weights.integer == 1
    found = product(build.library(), matrix, 32, row)
    largest = float(row.float().abs().max())
    assert float((found - row.float()).abs().max()) <= largest / 254 * 1.001 + 4e-37


def test_rows_that_are_too_small_are_zero() -> None:
    _, matrix = packed("Q4_1", blocks("Q4_1", 16, 64), 64)
    for library in every_library():
        assert not product(library, matrix, 16, (rows_of(2, 64) * 1e-38).bfloat16()).any()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 17, 40])
def test_what_is_no_number_stays_none(wrong: float, place: int) -> None:
    inputs = rows_of(2, 64)
    inputs[1, place] = wrong
    _, matrix = packed("Q4_1", blocks("Q4_1", 16, 64), 64)
    for library in every_library():
        found = product(library, matrix, 16, inputs)
        assert bool(found[0].isfinite().all())
        assert not bool(found[1].isfinite().any())


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_that_multiplies_wrongly_is_found_out(kind: str) -> None:
    rows = blocks(kind, 32, 512, 5)
    _, matrix = packed(kind, rows, 512)
    number = GGMLQuantizationType[kind].value
    compare([Blocks(number, rows[:16], 512)], matrix)
    with pytest.raises(ValueError, match="not multiplied here as their numbers are"):
        compare([Blocks(number, rows[1:17], 512)], matrix)
    rows[9, KINDS[kind][0] + 5] ^= 16
    with pytest.raises(ValueError, match="not multiplied here as their numbers are"):
        compare([Blocks(number, rows[:16], 512)], matrix)


def test_each_kind_and_length_of_products_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr("decodery.models.native.weights._compared", set())
    monkeypatch.setattr(
        "decodery.models.native.weights.compare", lambda parts, matrix: seen.append((parts[0].kind, parts[0].inputs))
    )

    class Stored:
        def blocks(self, name: str) -> Blocks:
            kind, inputs = name.split()
            return Blocks(GGMLQuantizationType[kind].value, blocks(kind, 16, int(inputs)), int(inputs))

        def release(self, name: str) -> None:
            pass

    weights = Weights("integer", large(2 * 16 * 512 * 8 + 4096))
    for name in ("Q4_0 256", "Q6_K 256", "Q4_0 256", "Q6_K 512", "Q6_K 256"):
        weights.read(Stored(), name)  # type: ignore[arg-type]
    assert seen == [(2, 256), (14, 256), (14, 512)]


@pytest.mark.parametrize("precision", ["native", "packed"])
@pytest.mark.parametrize("in_turns", [False, True])
def test_matrices_of_numbers_are_compared_too(
    precision: Precision, in_turns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that a product takes at once, in the order in which they are packed."""
    monkeypatch.setattr("decodery.models.native.weights._compared", set())
    weights = Weights(precision, large(1 << 20))
    both = [torch.randn(64, 96, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (1, 2)]
    expected: list[Tensor] = []
    monkeypatch.setattr(
        "decodery.models.native.weights.compare",
        lambda parts, matrix: expected.extend(part.rows for part in parts) or compare(parts, matrix),
    )
    weights.pack(*both, in_turns=in_turns)
    first = (both[0][:16], both[1][:16], both[0][16:32], both[1][16:32]) if in_turns else both[0].split(16)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(expected, first, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_that_is_no_number_is_refused(kind: str) -> None:
    rows = blocks(kind, 16, 256)
    place = KINDS[kind][2][-1]
    rows[7, place : place + 2] = torch.tensor([float("inf")]).half().view(torch.uint8)
    weights = Weights("integer", large(2 * 16 * 256 + 4096))
    form = form_of(GGMLQuantizationType[kind].value)
    assert form is not None
    assert weights._pack_as([Blocks(GGMLQuantizationType[kind].value, rows, 256)], form, 4, False) is None


def test_weights_that_no_form_holds_stay_as_they_are() -> None:
    matrix = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights = Weights("integer", large(2 * 32 * 64 + 4096))
    struct = weights.pack(matrix)
    assert (struct.bytes, struct.form, weights.integer, weights.shortened) == (ANY.bytes, 0, 0, 0)
    inputs = rows_of(3, 64)
    assert torch.allclose(product(build.library(), struct, 32, inputs), inputs.float() @ matrix.float().T, atol=1e-3)


def test_kinds_that_nobody_multiplies_have_no_form() -> None:
    assert form_of(GGMLQuantizationType.Q2_K.value) is None
    assert form_of(GGMLQuantizationType.F16.value) is None


def test_forms_take_what_their_file_takes_or_little_more() -> None:
    taken = {kind: form_of(GGMLQuantizationType[kind].value) for kind in KINDS}
    assert {kind: form and form.bytes for kind, form in taken.items()} == {
        "Q4_0": 288, "Q4_1": 320, "Q5_0": 544, "Q5_1": 576, "Q8_0": 544, "Q4_K": 384, "Q5_K": 640, "Q6_K": 640, "IQ4_NL": 544,
    }  # fmt: skip


def test_the_sources_are_all_part_of_the_key() -> None:
    folder = Path(build.__file__).parent
    assert {path.name for path in folder.iterdir() if path.suffix in (".c", ".h")} == set(build.SOURCES)
