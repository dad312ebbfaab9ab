"""Attention over packed rows of many sequences, each with its own cache and its own mask.

Registered with transformers under `ATTENTION_NAME`. A model's attention layers call `packed_attention` with the queries,
keys and values of all rows of a pass; the `Pack` of the current pass says which rows belong to which sequence.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from decodery.models.forward import Attend, Forward, Slots
from decodery.models.sequence import KeyValueCache

ATTENTION_NAME = "decodery"
FOLDED_ROWS = 64
"""Up to this many rows, heads of a group are folded into rows; beyond, the mask's copy would cost more than it saves."""


@dataclass(slots=True)
class Segment:
    """The rows of one forward within a pack."""

    start: int
    stop: int
    forward: Forward
    cache: KeyValueCache
    columns: int
    padded: int
    """Columns that the attention ranges over; those from `columns` on are hidden."""
    slots: slice | Tensor
    """Where the rows' keys and values are written."""
    masks: dict[tuple[int | None, int], Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None, query: Tensor, groups: int) -> Tensor | None:
        """What to add to the scores of these rows, or None where every row sees every column.

        window: the layer's sliding window. query: for dtype and device. groups: query heads per key head; where `attend`
        folds them into rows, the mask is repeated for each.
        """
        copies = groups if folds(groups, self.stop - self.start) else 1
        if (window, copies) not in self.masks:
            visible = self._build(window, query.device)
            if self.padded > self.columns:
                visible = self.forward.visible(query.device) if visible is None else visible
                visible = F.pad(visible, (0, self.padded - self.columns))
            if visible is not None:
                additive = torch.zeros(visible.shape, dtype=query.dtype, device=query.device)
                visible = additive.masked_fill_(~visible, float("-inf")).repeat(copies, 1)
            self.masks[window, copies] = visible
        return self.masks[window, copies]

    def _build(self, window: int | None, device: torch.device) -> Tensor | None:
        forward = self.forward
        if window is not None and self.reaches(window):
            return self.visible(window, device)
        if forward.attend is Attend.FULL or (forward.count == 1 and self.columns == self.stop_slot):
            return None
        return forward.visible(device)

    def reaches(self, window: int) -> bool:
        """Whether some row is so far from some column that a sliding window hides it."""
        positions = self.forward.row_positions()
        return max(positions) - min([*self.forward.sequence.positions, *positions]) >= window

    def visible(self, window: int | None, device: torch.device | None = None) -> Tensor:
        """Who sees whom, bool [rows, columns], within a sliding window if there is one."""
        visible = self.forward.visible(device)
        if window is None:
            return visible
        before = self.forward.sequence.positions
        column_positions = torch.tensor([*before, *[0] * (self.columns - len(before))], device=device)
        rows = torch.tensor(list(self.forward.row_positions()), device=device)
        column_positions[self.slots] = rows
        return visible & (rows[:, None] - column_positions[None, :] < window)

    @property
    def stop_slot(self) -> int:
        """One past the last written slot of a forward that appends; 0 where an explicit mask or slots decide."""
        forward = self.forward
        if isinstance(forward.slots, Slots) and forward.attend is Attend.CAUSAL:
            return forward.sequence.length + forward.count
        return 0


@dataclass(slots=True)
class Pack:
    """All rows of one pass."""

    segments: list[Segment]
    device: torch.device
    shapes: dict[int, tuple[int, int]] | None = None
    """Set while probing: layer -> (key/value heads, head width); nothing is cached then."""
    windows: dict[int, int | None] = field(default_factory=dict)
    """Set by probing: layer -> its sliding window."""

    @classmethod
    def of(cls, forwards: Listing[Forward], device: torch.device, period: int = 1) -> Pack:
        """Lay forwards out side by side and make room in their caches.

        period: attention ranges over a multiple of this many columns, the surplus ones hidden, so that sums are grouped
        alike whatever their number.
        """
        segments: list[Segment] = []
        start = 0
        for forward in forwards:
            cache = forward.sequence.cache
            assert isinstance(cache, KeyValueCache)
            columns = forward.columns()
            padded = -(-columns // period) * period
            cache.reserve(padded)
            slots: slice | Tensor
            if isinstance(forward.slots, Slots):
                slots = slice(forward.sequence.length, columns)
            else:
                slots = torch.tensor(list(forward.slots), device=device)
            segments.append(Segment(start, start + forward.count, forward, cache, columns, padded, slots))
            start += forward.count
        return cls(segments, device)

    @classmethod
    def probe(cls, shapes: dict[int, tuple[int, int]]) -> Pack:
        """A pack that only records what the layers' keys look like."""
        return cls([], torch.device("cpu"), shapes)

    def forget_borrowed(self) -> None:
        """Take back the rows of forwards that asked to leave the cache alone."""
        for segment in self.segments:
            if segment.forward.slots is Slots.NOWHERE:
                segment.forward.sequence.truncate(segment.columns - segment.forward.count)


_current = threading.local()


@contextlib.contextmanager
def packing(pack: Pack) -> Iterator[None]:
    """Make `pack` the pass that this thread's attention calls belong to."""
    _current.pack = pack
    try:
        yield
    finally:
        _current.pack = None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over the current pack.

    query [1, heads, rows, width], key and value [1, key/value heads, rows, width]; returns ([1, rows, heads, width], None).
    softcap, s_aux (attention sinks) and sliding_window are honoured where a family passes them.
    """
    pack: Pack | None = getattr(_current, "pack", None)
    if pack is None:
        raise RuntimeError(f"the attention function {ATTENTION_NAME!r} works only inside a decodery pass")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if pack.shapes is not None:
        pack.shapes[layer] = (key.shape[1], key.shape[3])
        pack.windows[layer] = sliding_window
        return query.transpose(1, 2), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = []
    for segment in pack.segments:
        keys, values = segment.cache.layer(layer)
        rows = slice(segment.start, segment.stop)
        if isinstance(segment.slots, slice):
            keys[:, segment.slots] = key[0, :, rows]
            values[:, segment.slots] = value[0, :, rows]
        else:
            keys.index_copy_(1, segment.slots, key[0, :, rows])
            values.index_copy_(1, segment.slots, value[0, :, rows])
        mask = segment.mask(sliding_window, query, query.shape[1] // key.shape[1])
        seen = (keys[:, : segment.padded][None], values[:, : segment.padded][None])
        outputs.append(attend(query[:, :, rows], *seen, mask, scale, softcap, s_aux))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return output.transpose(1, 2).contiguous(), None


def folds(groups: int, rows: int) -> bool:
    """Whether `attend` turns the query heads of a group into rows."""
    return groups > 1 and rows <= FOLDED_ROWS


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of one sequence's rows: query [1, heads, n, width] over keys and values [1, kv heads, columns, width].

    mask: as `Segment.mask` makes it, [n or groups * n, columns], added to the scores.
    """
    groups = query.shape[1] // keys.shape[1]
    if softcap is None and sinks is None:
        if not folds(groups, query.shape[2]):
            return F.scaled_dot_product_attention(query, keys, values, mask, scale=scale, enable_gqa=groups > 1)
        # Heads that share keys become further rows of one head: fewer and larger products.
        folded = query.reshape(1, keys.shape[1], groups * query.shape[2], query.shape[3])
        return F.scaled_dot_product_attention(folded, keys, values, mask, scale=scale).view(query.shape)
    keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    weights = torch.matmul(query, keys.transpose(2, 3)).float() * scale
    if softcap is not None:
        weights = torch.tanh(weights / softcap) * softcap
    if mask is not None:
        weights = weights + mask[: query.shape[2]]
    if sinks is not None:
        column = sinks.float().reshape(1, -1, 1, 1).expand(*weights.shape[:3], 1)
        weights = torch.cat([weights, column], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = weights.softmax(dim=-1)
    return torch.matmul(weights.to(values.dtype), values)


def register() -> None:
    """Tell transformers about `packed_attention`. Safe to call again."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, packed_attention)
