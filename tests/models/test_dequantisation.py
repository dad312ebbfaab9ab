"""Blocks of quantised weights become the numbers that the `gguf` package makes of them, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from decodery.models.gguf import dequantisation
from decodery.models.gguf.dequantisation import UNPACK, dequantise
from decodery.models.gguf.file import BLOCKS, block_of

RARE = ["MXFP4", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0"]


def blocks(kind: Kind, rows: int, inputs: int) -> np.ndarray:
    """Rows of random blocks: all bytes occur, scales are finite."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(int(kind))
    made = random.integers(0, 256, size=(4 * rows * inputs // block, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        sane = np.isfinite(dequantize(made, kind)).all(1)
    return made[sane][: rows * inputs // block].reshape(rows, -1)


SCALES = {
    Kind.Q4_0: [0],
    Kind.Q4_1: [0, 2],
    Kind.Q5_0: [0],
    Kind.Q5_1: [0, 2],
    Kind.Q8_0: [0],
    Kind.Q2_K: [80, 82],
    Kind.Q3_K: [108],
    Kind.Q4_K: [0, 2],
    Kind.Q5_K: [0, 2],
    Kind.Q6_K: [208],
    Kind.IQ4_NL: [0],
    Kind.IQ4_XS: [0],
}
"""Where blocks have their numbers in half precision."""


def like_weights(kind: Kind, rows: int, inputs: int) -> np.ndarray:
    """Rows of random blocks whose numbers are of the size of a network's weights."""
    made = blocks(kind, rows, inputs)
    fields = made.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])

    def scaled(scale: float) -> None:
        for start in SCALES[kind]:
            fields[:, start : start + 2] = np.array([scale], "f2").view("u1")

    scaled(1.0)
    scaled(0.2 / float(dequantize(made, kind).std()))
    return made


@pytest.mark.parametrize("kind", [*(Kind(number).name for number in UNPACK), *RARE])
def test_numbers_are_those_of_the_package(kind: str) -> None:
    rows = blocks(Kind[kind], 6, 1024)
    numbers = torch.empty(6, 1024)
    dequantise(torch.from_numpy(rows), Kind[kind], numbers)
    expected = torch.from_numpy(dequantize(rows, Kind[kind]))
    assert torch.equal(numbers.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_are_rounded_once(dtype: torch.dtype) -> None:
    rows = blocks(Kind.Q4_K, 4, 512)
    numbers = torch.empty(4, 512, dtype=dtype)
    dequantise(torch.from_numpy(rows), Kind.Q4_K, numbers)
    assert torch.equal(numbers, torch.from_numpy(dequantize(rows, Kind.Q4_K)).to(dtype))


def test_pieces_are_as_good_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(0).normal(size=(7, 96)).astype("f4")
    rows = quantize(weights, Kind.Q5_1)
    monkeypatch.setattr(dequantisation, "PIECE", 5 * 32)
    numbers = torch.empty(7, 96)
    dequantise(torch.from_numpy(rows), Kind.Q5_1, numbers)
    assert torch.equal(numbers, torch.from_numpy(dequantize(rows, Kind.Q5_1)))


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "f4"), ("F16", "f2"), ("F64", "f8")])
def test_plain_numbers(kind: str, dtype: str) -> None:
    weights = np.random.default_rng(0).normal(size=(3, 8)).astype(dtype)
    numbers = torch.empty(3, 8)
    dequantise(torch.from_numpy(weights.view("u1")), Kind[kind], numbers)
    assert torch.equal(numbers, torch.from_numpy(weights.astype("f4")))


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="4242"):
        dequantise(torch.zeros(1, 32, dtype=torch.uint8), 4242, torch.empty(1, 32))


def test_sizes_of_blocks_are_those_of_the_package() -> None:
    assert set(UNPACK) - set(BLOCKS) <= {Kind.Q2_K, Kind.Q3_K, Kind.IQ4_XS}
    assert {kind: block_of(kind) for kind in Kind} == gguf.GGML_QUANT_SIZES
