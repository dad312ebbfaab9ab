"""Attention over packed rows of many sequences, each with its own cache and its own mask.

Registered with transformers under `ATTENTION_NAME`. A model's attention layers call `packed_attention` with the queries,
keys and values of all rows of a pass; the `Pack` of the current pass says which rows belong to which sequence. The masks that a
model makes for its layers are functions of two positions (`packed_mask`), which decide beside what each `Forward` says.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from decodery.models.forward import Attend, Forward, Slots
from decodery.models.key_value_cache import KeyValueCache
from decodery.models.workbench import Workbench

ATTENTION_NAME = "decodery"
FOLDED_ROWS = 64
"""Up to this many rows, heads of a group are folded into rows; beyond, the mask's copy would cost more than it saves."""


MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, position of the row, position of the column) -> whether the row sees the column, as transformers writes it."""
FARTHEST = 1 << 24
"""No window is wider."""


class CannotPack(Exception):
    """What a family does with its attention is not for packed rows."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of the attention function in a pass: what it keeps, and which of the earlier rows its mask lets a row see.

    heads, width: of keys and values, the wider of the two. window: rows so many positions away and more are hidden; None: none
    are. own_mask: the mask is no window, and asks for both positions.
    """

    heads: int
    width: int
    window: int | None
    own_mask: bool


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
    """Which cache rows are written."""
    places: slice | Tensor
    """The same within the last span of the cache."""
    masks: dict[tuple[int | None, MaskFunction | None, int], Tensor | None] = field(default_factory=dict)

    def writable(self, index: int) -> Tensor:
        """Keys and values of a layer in the last span, [2, heads, capacity, width], to be written at `places`."""
        return self.cache.spans[-1].views[index]

    def seen(self, index: int, bench: Workbench) -> Tensor:
        """Keys and values of a layer that the attention ranges over, [2, heads, padded, width]. Good until the next one's."""
        if len(self.cache.spans) == 1:
            return self.writable(index)[:, :, : self.padded]
        return bench.lay(self.cache, index, self.columns, self.padded)

    def mask(self, window: int | None, query: Tensor, groups: int, own: MaskFunction | None = None) -> Tensor | None:
        """What to add to the scores of these rows, or None where every row sees every column.

        window: the layer's sliding window. query: for dtype and device. groups: query heads per key head; where `attend`
        folds them into rows, the mask is repeated for each. own: the layer's mask where it is no window.
        """
        copies = groups if folds(groups, self.stop - self.start) else 1
        key = (window, own, copies)
        if key not in self.masks:
            visible = self._build(window, query.device) if own is None else self._limited(own, query.device)
            if self.padded > self.columns:
                visible = self.forward.visible(query.device) if visible is None else visible
                visible = F.pad(visible, (0, self.padded - self.columns))
            if visible is not None:
                additive = torch.zeros(visible.shape, dtype=query.dtype, device=query.device)
                visible = additive.masked_fill_(~visible, float("-inf")).repeat(copies, 1)
            self.masks[key] = visible
        return self.masks[key]

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
        rows, columns = self._positions(device)
        return visible & (rows[:, None] - columns[None, :] < window)

    def _limited(self, own: MaskFunction, device: torch.device) -> Tensor:
        """Who sees whom, bool [rows, columns], within a layer's own mask. Of later columns the forward alone decides: the
        masks of causal models hide them all."""
        rows, columns = self._positions(device)
        first = torch.zeros((), dtype=torch.long, device=device)
        allowed = own(first, first, rows[:, None], columns[None, :])
        return self.forward.visible(device) & (allowed | (columns[None, :] > rows[:, None]))

    def _positions(self, device: torch.device | None) -> tuple[Tensor, Tensor]:
        """The positions of the rows, and of the columns as they are after this forward."""
        before = self.forward.sequence.positions
        columns = torch.tensor([*before, *[0] * (self.columns - len(before))], device=device)
        rows = torch.tensor(list(self.forward.row_positions()), device=device)
        columns[self.slots] = rows
        return rows, columns

    @property
    def stop_slot(self) -> int:
        """One past the last written slot of a forward that appends; 0 where an explicit mask or slots decide."""
        forward = self.forward
        if isinstance(forward.slots, Slots) and forward.attend is Attend.CAUSAL:
            return forward.sequence.length + forward.count
        return 0


@dataclass(slots=True)
class Pack:
    """All rows of one pass.

    places: (module that calls, how often it called before in the pass) -> the cache that the call writes. calls: what each call
    of the attention function is like. While probing, both are filled and nothing is cached.
    """

    segments: list[Segment]
    device: torch.device
    places: dict[tuple[int, int], int] = field(default_factory=dict)
    calls: list[AttentionCall] = field(default_factory=list)
    probing: bool = False
    modules: list[nn.Module] = field(default_factory=list)
    """While probing: which module made each call."""
    masks: list[tuple[Tensor, MaskFunction]] = field(default_factory=list)
    """What stands for a mask in this pass, and the mask."""
    bench: Workbench = field(default_factory=Workbench)
    _called: dict[int, int] = field(default_factory=dict)

    def place(self, module: nn.Module) -> int:
        """The cache of a module's next call."""
        before = self._called.get(id(module), 0)
        self._called[id(module)] = before + 1
        if self.probing:
            return self.places.setdefault((id(module), before), len(self.places))
        place = self.places.get((id(module), before))
        if place is None:
            raise CannotPack(f"{type(module).__name__} attends once more than when it was probed")
        return place

    def mask_of(self, stands: Tensor | None) -> MaskFunction | None:
        """The mask that was handed to a layer; None where it may see all earlier rows."""
        if stands is None:
            return None
        for mark, function in self.masks:
            if mark is stands:
                return function
        raise CannotPack("its layers change the mask")

    @classmethod
    def of(cls, forwards: Listing[Forward], device: torch.device, period: int = 1) -> Pack:
        """Lay forwards out side by side and make room in their caches.

        period: attention ranges over a multiple of this many columns, the surplus ones hidden, so that sums are grouped
        alike whatever their number.
        """
        segments: list[Segment] = []
        start = 0
        met: set[KeyValueCache] = set()
        for forward in forwards:
            cache = forward.sequence.cache
            assert isinstance(cache, KeyValueCache)
            if (
                cache in met
            ):  # all rows of a layer may be written before any is read, so two must not borrow the same place
                cache = cache.copy(forward.sequence.length)
            met.add(cache)
            columns = forward.columns()
            padded = -(-columns // period) * period
            length = forward.sequence.length
            slots: slice | Tensor
            places: slice | Tensor
            if isinstance(forward.slots, Slots):
                cache.reserve(padded, length)
                first = cache.spans[-1].first
                slots, places = slice(length, columns), slice(length - first, columns - first)
            else:
                cache.reserve(padded, min(length, *forward.slots))
                slots = torch.tensor(list(forward.slots), device=device)
                places = slots - cache.spans[-1].first
            segments.append(Segment(start, start + forward.count, forward, cache, columns, padded, slots, places))
            start += forward.count
        return cls(segments, device)

    def attend(self, one: Callable[[Segment], Tensor]) -> Tensor:
        """What `one` gives for each sequence, [1, heads, its rows, width], in the order of the rows. Sequences that begin alike
        have their turns one after the other."""
        if len(self.segments) == 1:
            return one(self.segments[0])
        spans = [[id(span) for span in segment.cache.spans] for segment in self.segments]
        order = sorted(range(len(spans)), key=spans.__getitem__)
        found = {place: one(self.segments[place]) for place in order}
        return torch.cat([found[place] for place in range(len(found))], dim=2)

    @classmethod
    def probe(cls, device: torch.device) -> Pack:
        """A pack that only records how a model attends."""
        return cls([], device, probing=True)

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
    pack = current_pack()
    place, width = pack.place(module), max(key.shape[3], value.shape[3])
    if pack.probing:
        pack.modules.append(module)
        pack.calls.append(_call_of(key.shape[1], width, sliding_window, pack.mask_of(attention_mask)))
        return query.new_zeros(*query.shape[:3], value.shape[3]).transpose(1, 2), None
    call = pack.calls[place]
    own = pack.mask_of(attention_mask) if call.own_mask else None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]

    def one(segment: Segment) -> Tensor:
        rows = slice(segment.start, segment.stop)
        for cached, new in zip(segment.writable(place), (key, value), strict=True):
            written = cached[..., : new.shape[3]]
            if isinstance(segment.places, slice):
                written[:, segment.places] = new[0, :, rows]
            else:
                written.index_copy_(1, segment.places, new[0, :, rows])
        keys, values = segment.seen(place, pack.bench)[:, None]
        mask = segment.mask(call.window, query, groups, own)
        seen = keys[..., : key.shape[3]], values[..., : value.shape[3]]
        return attend(query[:, :, rows], *seen, mask, scale, softcap, s_aux)

    return pack.attend(one).transpose(1, 2).contiguous(), None


def packed_mask(
    q_length: int,
    kv_length: int,
    mask_function: MaskFunction,
    device: torch.device,
    use_vmap: bool = False,
    **kwargs: Any,
) -> Tensor:
    """transformers' mask interface: what stands for a mask until a layer hands it to `packed_attention`."""
    if use_vmap:
        raise CannotPack("its mask looks at more than two positions")
    mark = torch.zeros((), device=device).expand(1, 1, q_length, kv_length)
    current_pack().masks.append((mark, mask_function))
    return mark


def current_pack() -> Pack:
    """The pass that this thread is in. Raises RuntimeError where it is in none."""
    pack: Pack | None = getattr(_current, "pack", None)
    if pack is None:
        raise RuntimeError(f"the attention function {ATTENTION_NAME!r} works only inside a decodery pass")
    return pack


def _call_of(heads: int, width: int, named: int | None, mask: MaskFunction | None) -> AttentionCall:
    """named: the window that is handed over beside the mask."""
    window, whole = (None, True) if mask is None else _window_of(mask)
    known = [size for size in (named, window) if size is not None]
    return AttentionCall(heads, width, min(known, default=None), not whole)


def _window_of(mask: MaskFunction) -> tuple[int | None, bool]:
    """How wide the window is that a mask leaves, and whether it is one, the same for every position."""
    first = torch.zeros((), dtype=torch.long)

    def sees(row: int, distance: int) -> bool:
        return bool(mask(first, first, torch.tensor([[row]]), torch.tensor([[row - distance]])).all())

    def reach(row: int) -> int:
        """The first distance that is hidden, if those behind are hidden too."""
        near, far = 0, row + 1
        while near + 1 < far:
            middle = (near + far) // 2
            near, far = (middle, far) if sees(row, middle) else (near, middle)
        return far

    if not sees(FARTHEST, 0) or sees(FARTHEST, -1):
        return None, False
    reaches = {reach(row) for row in (FARTHEST, FARTHEST - 1, FARTHEST - 12347)}
    if reaches == {FARTHEST + 1, FARTHEST, FARTHEST - 12346}:
        return None, True
    return (reaches.pop(), True) if len(reaches) == 1 else (None, False)


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
        together = F.scaled_dot_product_attention(folded, keys, values, mask, scale=scale)
        return together.view(*query.shape[:3], values.shape[3])
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
    """Tell transformers about `packed_attention` and `packed_mask`. Safe to call again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, packed_mask)
