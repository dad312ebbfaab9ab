"""Attention over packed rows, against the formula written out in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from decodery.models.attention import (
    ATTENTION_NAME,
    FOLDED_ROWS,
    AttentionCall,
    Pack,
    attend,
    folds,
    packed_attention,
    packing,
)
from decodery.models.forward import Attend, Forward, Slots
from decodery.models.key_value_cache import KeyValueCache
from decodery.models.sequence import Sequence

BOUND = 2e-6
"""Largest absolute difference from float64; outputs are averages of values of unit variance."""


def formula(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """query [1, heads, n, width], keys and values [1, key heads, columns, width], visible [n, columns]."""
    groups = query.shape[1] // keys.shape[1]
    rows = []
    for head in range(query.shape[1]):
        weights = query[0, head].double() @ keys[0, head // groups].double().T * scale
        if softcap is not None:
            weights = softcap * torch.tanh(weights / softcap)
        weights = torch.where(visible, weights, torch.tensor(float("-inf"), dtype=torch.float64))
        exponentials = weights.exp()
        total = exponentials.sum(dim=1, keepdim=True)
        if sinks is not None:
            total = total + sinks[head].double().exp()
        rows.append(exponentials / total @ values[0, head // groups].double())
    return torch.stack(rows)[None]


@pytest.mark.parametrize("rows", [1, 5, FOLDED_ROWS, FOLDED_ROWS + 1])
@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("kind", ["all", "random"])
def test_attention_is_the_formula(
    rows: int, key_heads: int, softcap: float | None, with_sinks: bool, kind: str
) -> None:
    heads, columns, width, scale = 6, 70, 8, 0.31
    query = torch.randn(1, heads, rows, width) * 2
    keys, values = torch.randn(1, key_heads, columns, width), torch.randn(1, key_heads, columns, width)
    sinks = torch.randn(heads) if with_sinks else None
    visible = torch.ones(rows, columns, dtype=torch.bool)
    mask = None
    if kind == "random":
        visible = torch.rand(rows, columns) < 0.4
        visible[:, 0] = True
        mask = torch.zeros(rows, columns).masked_fill(~visible, float("-inf"))
        copies = heads // key_heads if folds(heads // key_heads, rows) else 1
        mask = mask.repeat(copies, 1)
    found = attend(query, keys, values, mask, scale, softcap, sinks)
    assert float((found - formula(query, keys, values, visible, scale, softcap, sinks)).abs().max()) < BOUND


def _packed(
    forwards: list[Forward], key_heads: int, window: int | None, **arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer of a pass; returns the output [rows, heads, width] and the query, keys and values that went in."""
    total = sum(forward.count for forward in forwards)
    query, key, value = (torch.randn(1, heads, total, 8) for heads in (4, key_heads, key_heads))
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    pack = Pack.of(forwards, torch.device("cpu"))
    pack.places, pack.calls = {(id(module), 0): 0}, [AttentionCall(key_heads, 8, window, own_mask=False)]
    with packing(pack):
        output, weights = packed_attention(module, query, key, value, None, scaling=0.4, **arguments)
    assert weights is None
    return output[0], query, key, value


def _cached(rows: int, key_heads: int) -> Sequence:
    cache = KeyValueCache([(key_heads, 8)], torch.float32, torch.device("cpu"))
    sequence = Sequence(None, cache)  # type: ignore[arg-type]
    if rows:
        cache.reserve(rows)
        for part in cache.layer(0):
            part[:, :rows] = torch.randn(key_heads, rows, 8)
        sequence.write(range(rows), list(range(rows)), list(range(rows)))
    return sequence


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("key_heads", [2, 4])
def test_packed_rows_see_their_own_sequence_only(window: int | None, key_heads: int) -> None:
    sequences = [_cached(rows, key_heads) for rows in (0, 7, 3, 9, 5)]
    mask = torch.rand(2, 11) < 0.5
    mask[:, 9:] = torch.eye(2, dtype=torch.bool)
    forwards = [
        Forward(sequences[0], [1, 2, 3]),
        Forward(sequences[1], [1, 2], attend=Attend.FULL),
        Forward(sequences[2], [1], slots=Slots.NOWHERE),
        Forward(sequences[3], [1, 2], [9, 9], mask),
        Forward(sequences[4], [1, 2, 3], slots=[4, 6, 5]),
    ]
    before = [[part.clone() for part in sequence.cache.layer(0)] if sequence.length else None for sequence in sequences]
    output, query, key, value = _packed(forwards, key_heads, window)
    start = 0
    for forward, old in zip(forwards, before, strict=True):
        rows, columns = slice(start, start + forward.count), forward.columns()
        slots, positions = list(forward.written_slots()), list(forward.row_positions())
        keys, values = torch.zeros(1, key_heads, columns, 8), torch.zeros(1, key_heads, columns, 8)
        if old is not None:
            cached = forward.sequence.length
            keys[0, :, :cached], values[0, :, :cached] = old[0][:, :cached], old[1][:, :cached]
        keys[0][:, slots], values[0][:, slots] = key[0, :, rows], value[0, :, rows]
        places = torch.tensor(forward.sequence.positions + [0] * (columns - forward.sequence.length))
        places[slots] = torch.tensor(positions)
        visible = forward.visible()
        if window is not None:
            visible = visible & (torch.tensor(positions)[:, None] - places[None] < window)
        expected = formula(query[:, :, rows], keys, values, visible, 0.4, None, None)[0].transpose(0, 1)
        assert float((output[rows] - expected).abs().max()) < BOUND
        stored = forward.sequence.cache.layer(0)  # type: ignore[attr-defined]
        assert torch.equal(stored[0][:, :columns], keys[0])
        assert torch.equal(stored[1][:, :columns], values[0])
        start += forward.count


def test_softcap_and_sinks_reach_packed_rows() -> None:
    sinks = torch.randn(4)
    output, query, key, value = _packed([Forward(_cached(0, 2), [1, 2])], 2, None, softcap=2.0, s_aux=sinks)
    visible = torch.tensor([[True, False], [True, True]])
    expected = formula(query, key, value, visible, 0.4, 2.0, sinks)[0].transpose(0, 1)
    assert float((output - expected).abs().max()) < BOUND


def test_without_scaling_the_width_decides() -> None:
    query, key = torch.randn(1, 4, 2, 8), torch.randn(1, 2, 2, 8)
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    pack = Pack.of([Forward(_cached(0, 2), [1, 2])], torch.device("cpu"))
    pack.places, pack.calls = {(id(module), 0): 0}, [AttentionCall(2, 8, None, own_mask=False)]
    with packing(pack):
        output, _ = packed_attention(module, query, key, key, None)
    expected = functional.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
    assert float((output[0] - expected[0].transpose(0, 1)).abs().max()) < BOUND


def test_outside_of_a_pass_it_refuses() -> None:
    from transformers import AttentionInterface

    assert AttentionInterface()[ATTENTION_NAME] is packed_attention
    rows = torch.zeros(1, 1, 1, 4)
    with pytest.raises(RuntimeError, match="only inside a decodery pass"):
        packed_attention(torch.nn.Module(), rows, rows, rows, None)


def test_the_pack_is_forgotten_after_an_error() -> None:
    rows = torch.zeros(1, 1, 1, 4)
    with pytest.raises(ZeroDivisionError), packing(Pack.probe({})):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="only inside"):
        packed_attention(torch.nn.Module(), rows, rows, rows, None)
