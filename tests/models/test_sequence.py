"""Sequences and their caches against the simplest model of them: a list of rows."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decodery.models.key_value_cache import KeyValueCache
from decodery.models.sequence import NothingKept, Sequence

SHAPES = [(2, 4), (1, 8), (2, 4)]
"""Three layers, the second of another shape."""


def write(sequence: Sequence, slots: list[int], marks: list[int]) -> None:
    """What a network does: mark the cache rows of each layer, then record them."""
    cache = sequence.cache
    assert isinstance(cache, KeyValueCache)
    cache.reserve(max([sequence.length, *(slot + 1 for slot in slots)]), min([sequence.length, *slots]))
    last = cache.spans[-1]
    for layer in range(len(SHAPES)):
        keys, values = last.views[layer]
        for slot, mark in zip(slots, marks, strict=True):
            keys[:, slot - last.first], values[:, slot - last.first] = mark + layer, -mark - layer
    sequence.write(range(slots[0], slots[0] + len(slots)) if slots[0] == sequence.length else slots, marks, slots)


def check(sequence: Sequence, rows: list[int]) -> None:
    """The cache rows and the tokens both are `rows`."""
    assert sequence.tokens == rows
    assert sequence.length == len(rows)
    expected = torch.tensor(rows, dtype=torch.float32)
    if not rows:
        return
    for layer, (heads, width) in enumerate(SHAPES):
        keys, values = sequence.cache.layer(layer)  # type: ignore[attr-defined]
        assert keys.shape[0] == heads
        assert keys.shape[2] == width
        wanted = (expected + layer)[None, :, None].expand(heads, len(rows), width)
        assert torch.equal(keys[:, : len(rows)], wanted)
        assert torch.equal(values[:, : len(rows)], -wanted)


def new_sequence() -> Sequence:
    cache = KeyValueCache(SHAPES, torch.float32, torch.device("cpu"))
    return Sequence(None, cache)  # type: ignore[arg-type]


@given(st.data())
def test_any_operations_equal_those_on_a_list(data: st.DataObject) -> None:
    sequence, rows, fresh = new_sequence(), [], iter(range(1, 100_000))
    others: list[tuple[Sequence, list[int]]] = []
    for _ in range(data.draw(st.integers(1, 12), label="operations")):
        kind = data.draw(st.sampled_from(["append", "rewrite", "keep", "truncate", "fork"]), label="operation")
        if kind == "append":
            marks = [next(fresh) for _ in range(data.draw(st.sampled_from([1, 2, 5, 90]), label="rows"))]
            write(sequence, list(range(len(rows), len(rows) + len(marks))), marks)
            rows += marks
        elif kind == "rewrite" and rows:
            slots = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4, unique=True))
            marks = [next(fresh) for _ in slots]
            write(sequence, slots, marks)
            for slot, mark in zip(slots, marks, strict=True):
                rows[slot] = mark
        elif kind == "keep" and rows:
            start = data.draw(st.integers(max(0, len(rows) - 8), len(rows) - 1), label="start")
            kept = [row for row in range(start, len(rows)) if data.draw(st.booleans(), label="kept")]
            sequence.keep(kept, start)
            rows = rows[:start] + [rows[row] for row in kept]
        elif kind == "truncate":
            length = data.draw(st.integers(0, len(rows)), label="length")
            sequence.truncate(length)
            rows = rows[:length]
        elif kind == "fork":
            others.append((sequence, list(rows)))
            sequence = sequence.fork()
        check(sequence, rows)
        assert len(sequence.positions) == len(rows)
    for other, marks in others:
        check(other, marks)


def test_every_path_that_can_be_kept() -> None:
    """All sub-sequences of the rows after every start."""
    marks = list(range(11, 17))
    for start in range(7):
        for size in range(7 - start):
            for kept in itertools.combinations(range(start, 6), size):
                sequence = new_sequence()
                write(sequence, list(range(6)), marks)
                sequence.keep(kept, start)
                check(sequence, marks[:start] + [marks[row] for row in kept])


@pytest.mark.parametrize(
    ("rows", "start"), [([3, 2], 0), ([2, 2], 0), ([5], 0), ([-1], 0), ([1], 2), ([0, 4, 5], 0)], ids=str
)
def test_rows_that_cannot_be_kept(rows: list[int], start: int) -> None:
    sequence = new_sequence()
    write(sequence, [0, 1, 2, 3, 4], [1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="must ascend"):
        sequence.keep(rows, start)
    check(sequence, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("length", [-1, 6])
def test_lengths_that_cannot_be_cut_to(length: int) -> None:
    sequence = new_sequence()
    write(sequence, [0, 1, 2, 3, 4], [1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="cannot cut"):
        sequence.truncate(length)
    check(sequence, [1, 2, 3, 4, 5])


def test_positions_move_with_their_rows() -> None:
    sequence = Sequence(None, NothingKept())  # type: ignore[arg-type]
    sequence.write(range(5), [1, 2, 3, 4, 5], [0, 1, 2, 2, 3])
    sequence.keep([3, 4], 2)
    assert sequence.tokens == [1, 2, 4, 5]
    assert sequence.positions == [0, 1, 2, 3]
    assert sequence.next_position == 4
    assert Sequence(None, NothingKept()).next_position == 0  # type: ignore[arg-type]


def test_capacity_doubles_and_unused_rows_are_zero() -> None:
    cache = KeyValueCache(SHAPES, torch.float32, torch.device("cpu"))
    assert cache.bytes == 0
    sizes = []
    for rows in (1, 128, 129, 256, 257, 1000):
        cache.reserve(rows)
        sizes.append(cache.layer(0)[0].shape[1])
    assert sizes == [128, 128, 256, 256, 512, 1024]
    assert cache.bytes == 1024 * 4 * 2 * (2 * 4 + 8 + 2 * 4)
    # A masked column still enters the product with the values; 0 times what was in memory must be 0.
    assert all(float(part.abs().sum()) == 0 for layer in range(3) for part in cache.layer(layer))
