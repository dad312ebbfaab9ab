"""Numbers from the blocks of quantised weights, as GGUF files hold them.

A block is a run of 32 or 256 numbers of one row: scales in half precision, then the numbers in a few bits. Each kind's layout
is that of https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h; the common kinds are unpacked here, by torch, in
pieces that stay in the processor's cache, five to ten times as fast as by the `gguf` package, which unpacks the rare ones.
Every number is computed in float32 by the same operations in the same order as there, so it is the same to the bit, and
rounded once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from decodery.models.gguf.file import block_of

PLAIN = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
"""Kinds that are numbers as they stand."""
PIECE = 1 << 18
"""Numbers unpacked at a time: a megabyte in float32."""

_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the four bits of the IQ4 kinds stand for."""


def dequantise(rows: Tensor, kind: int, out: Tensor) -> None:
    """Write the numbers of quantised rows into `out`.

    rows: uint8 [..., bytes of a row], contiguous. kind: as `gguf.GGMLQuantizationType` numbers it. out: [..., numbers of a
    row], contiguous, of any floating dtype. Raises ValueError for an unknown kind.
    """
    if kind in PLAIN:
        out.copy_(rows.view(PLAIN[kind]))
        return
    block, size = block_of(kind)
    blocks, numbers = rows.reshape(-1, size), out.view(-1, block)
    unpack = UNPACK.get(kind) or _by_the_package(kind)
    step = PIECE // block
    for start in range(0, len(blocks), step):
        piece = blocks[start : start + step]
        numbers[start : start + step] = unpack(piece).view(len(piece), block)


def _by_the_package(kind: int) -> Callable[[Tensor], Tensor]:
    from gguf import GGMLQuantizationType, quants

    def unpack(blocks: Tensor) -> Tensor:
        return torch.from_numpy(quants.dequantize(blocks.numpy(), GGMLQuantizationType(kind)))

    return unpack


def _half(blocks: Tensor, start: int) -> Tensor:
    """A number in half precision of each block: float32 [blocks, 1]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """uint8 [n, 2 * width] of uint8 [n, width]: all low halves of bytes, then all high ones."""
    return torch.cat((packed & 15, packed >> 4), 1)


def _fields(packed: Tensor, width: int, bits: int) -> Tensor:
    """Fields of so many bits: for each run of `width` bytes the lowest fields of all of them, then the next ones."""
    runs = packed.reshape(len(packed), -1, 1, width)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8).view(1, 1, -1, 1)
    return ((runs >> shifts) & ((1 << bits) - 1)).view(len(packed), -1)


def _fifth_bits(packed: Tensor) -> Tensor:
    """uint8 [n, 32], 16 or 0: the bits of four bytes, lowest first."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return (((packed.unsqueeze(-1) >> shifts) & 1) << 4).view(len(packed), 32)


def _q4_0(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 2:]).float().sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 4:]).float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: Tensor) -> Tensor:
    numbers = _nibbles(blocks[:, 6:]).bitwise_or_(_fifth_bits(blocks[:, 2:6]))
    return numbers.float().sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    numbers = _nibbles(blocks[:, 8:]).bitwise_or_(_fifth_bits(blocks[:, 4:8]))
    return numbers.float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks, 0))


def _q2_k(blocks: Tensor) -> Tensor:
    scales = blocks[:, :16]
    scale = _half(blocks, 80) * (scales & 15).float()
    least = _half(blocks, 82) * (scales >> 4).float()
    numbers = _fields(blocks[:, 16:80], 32, 2).view(-1, 16, 16).float()
    return numbers.mul_(scale.unsqueeze(-1)).sub_(least.unsqueeze(-1))


def _q3_k(blocks: Tensor) -> Tensor:
    low, high = _nibbles(blocks[:, 96:104]), _fields(blocks[:, 104:108], 4, 2)
    scales = (low | (high << 4)).float().sub_(32).mul_(_half(blocks, 108))
    # The third bit says where nothing is to be taken away.
    borrow = (_fields(blocks[:, :32], 32, 1) ^ 1) << 2
    numbers = _fields(blocks[:, 32:96], 32, 2).float().sub_(borrow)
    return numbers.view(-1, 16, 16).mul_(scales.unsqueeze(-1))


def _scales_and_least(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K, for each 32 numbers: float32 [blocks, 8, 1]."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = torch.cat((first & 63, (rest & 15) | ((first >> 2) & 48)), 1).float() * _half(blocks, 0)
    least = torch.cat((second & 63, (rest >> 4) | ((second >> 2) & 48)), 1).float() * _half(blocks, 2)
    return scale.unsqueeze(-1), least.unsqueeze(-1)


def _q4_k(blocks: Tensor) -> Tensor:
    scale, least = _scales_and_least(blocks)
    return _fields(blocks[:, 16:], 32, 4).view(-1, 8, 32).float().mul_(scale).sub_(least)


def _q5_k(blocks: Tensor) -> Tensor:
    scale, least = _scales_and_least(blocks)
    numbers = _fields(blocks[:, 48:], 32, 4) | (_fields(blocks[:, 16:48], 32, 1) << 4)
    return numbers.view(-1, 8, 32).float().mul_(scale).sub_(least)


def _q6_k(blocks: Tensor) -> Tensor:
    numbers = _fields(blocks[:, :128], 64, 4) | (_fields(blocks[:, 128:192], 32, 2) << 4)
    scales = blocks[:, 192:208].view(torch.int8).float() * _half(blocks, 208)
    return numbers.float().sub_(32).view(-1, 16, 16).mul_(scales.unsqueeze(-1))


def _levels(packed: Tensor) -> Tensor:
    return torch.tensor(_LEVELS, dtype=torch.float32)[_nibbles(packed).int()]


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _levels(blocks[:, 2:]).mul_(_half(blocks, 0))


def _iq4_xs(blocks: Tensor) -> Tensor:
    low = torch.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), -1).view(-1, 8)
    high = _fields(blocks[:, 2:4], 1, 2)
    scales = (low | (high << 4)).float().sub_(32).mul_(_half(blocks, 0))
    numbers = _levels(blocks[:, 8:].reshape(-1, 16)).view(-1, 8, 32)
    return numbers.mul_(scales.unsqueeze(-1))


UNPACK: dict[int, Callable[[Tensor], Tensor]] = {
    2: _q4_0,
    3: _q4_1,
    6: _q5_0,
    7: _q5_1,
    8: _q8_0,
    10: _q2_k,
    11: _q3_k,
    12: _q4_k,
    13: _q5_k,
    14: _q6_k,
    20: _iq4_nl,
    23: _iq4_xs,
}
"""uint8 [blocks, bytes of a block] to float32, by the kind's number."""
