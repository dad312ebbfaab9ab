"""Values in pairs of rows: the same rows as in the usual order, whatever is done to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decodery.models.key_value_cache import BLOCK, KeyValueCache
from decodery.models.native.cache import PairedCache

pytestmark = pytest.mark.usefixtures("native_decoder")
SHAPES = [(2, 64)] * 3
CPU = torch.device("cpu")


def filled(rows: int, seed: int) -> tuple[KeyValueCache, PairedCache]:
    """A cache of each kind with the same random rows."""
    usual, paired = KeyValueCache(SHAPES, torch.bfloat16, CPU), PairedCache(SHAPES, torch.bfloat16, CPU)
    usual.reserve(rows)
    paired.reserve(rows)
    generator = torch.Generator().manual_seed(seed)
    for layer in range(len(SHAPES)):
        numbers = torch.randn(2, 2, rows, 64, generator=generator).bfloat16()
        usual.both(layer)[:, :, :rows] = numbers
        for row in range(rows):
            keys, values = paired.spans[row // BLOCK].views[layer]
            at = row % BLOCK
            keys[:, at] = numbers[0, :, row]
            values.view(2, -1, 64, 2)[:, at // 2, :, at % 2] = numbers[1, :, row]
    return usual, paired


def rows_of(cache: KeyValueCache, rows: int) -> list[Tensor]:
    return [cache.both(layer)[:, :, :rows] for layer in range(len(SHAPES))]


def assert_same(usual: KeyValueCache, paired: PairedCache, rows: int) -> None:
    for ours, theirs in zip(rows_of(usual, rows), rows_of(paired, rows), strict=True):
        assert torch.equal(ours, theirs)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_rows_move_as_in_the_usual_order(data: st.DataObject) -> None:
    rows = data.draw(st.integers(2, 40))
    usual, paired = filled(rows, rows)
    start = data.draw(st.integers(0, rows - 1))
    kept = sorted(data.draw(st.sets(st.integers(start, rows - 1), min_size=1)))
    usual.move(kept, start)
    paired.move(kept, start)
    assert_same(usual, paired, start + len(kept))


@pytest.mark.parametrize("rows", [1, 2, 127, 128, 129, 300])
def test_copies_and_growth(rows: int) -> None:
    usual, paired = filled(rows, rows)
    assert_same(usual, paired.copy(rows), rows)
    paired.reserve(2 * rows + 200)
    assert_same(usual, paired, rows)


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (3, 5), (3, 8), (4, 9), (7, 8)])
def test_rows_are_taken_over(start: int, stop: int) -> None:
    usual, paired = filled(10, 1)
    other = PairedCache(SHAPES, torch.bfloat16, CPU)
    if start:
        other.take(paired, 0, start)
    other.take(paired, start, stop)
    assert_same(usual, other, stop)


def test_an_odd_number_of_rows_is_expected() -> None:
    _, paired = filled(4, 2)
    paired.expect(131)
    paired.reserve(129)
    assert paired.capacity % 2 == 0
