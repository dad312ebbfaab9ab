"""What transformers' own cache objects hold of a text, kept at several lengths of it.

A recurrent state cannot be cut back, so a text that loses its last tokens goes on from the state at an earlier length. Keys and
values that only grow are kept once, for all lengths together: they are the bulk, and a shorter text has the first rows of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

MOST_STATES = 32
"""More are never kept of one text."""
MOST_BYTES = 1 << 26
"""What the checkpoints of a text take together, unless two of them take more: two are always kept."""

Trunk: TypeAlias = "dict[int, tuple[Tensor, Tensor]]"
"""Layer -> keys and values of all tokens of a text, [..., tokens, width]; never written to."""


@dataclass(frozen=True)
class CacheState:
    """A cache after the first `length` tokens of a text, without the keys and values that are in the trunk.

    state: never handed out, only copied. bytes: of its tensors. divisible: it holds nothing but a trunk, so that it serves any
    shorter length too.
    """

    length: int
    state: Any
    bytes: int
    divisible: bool

    @classmethod
    def of(cls, state: Any, length: int) -> tuple[CacheState, Trunk]:
        """Take a cache apart. It must not be used afterwards."""
        trunk: Trunk = {}
        for place, layer in enumerate(_layers(state)):
            grows = isinstance(layer, DynamicLayer) and type(layer).update is DynamicLayer.update
            if grows and layer.keys is not None and layer.keys.shape[-2] == length:
                trunk[place] = layer.keys, layer.values
                layer.keys = layer.values = None
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state, set()))
        plain = type(state) is DynamicCache and all(type(layer) is DynamicLayer for layer in state.layers)
        return cls(length, state, size, plain and len(trunk) == len(state.layers)), trunk

    def at(self, length: int, trunk: Trunk) -> Any:
        """A cache of the first `length` tokens that the caller may write to: those of the checkpoint, or fewer where it is
        divisible."""
        state = _copied(self.state, {})
        for place, (keys, values) in trunk.items():
            layer = state.layers[place]
            layer.keys, layer.values = keys[..., :length, :], values[..., :length, :]
        return state


class TextCache:
    """The states of one text. It does not follow what becomes of its sequence: it is told what the text is when a pass begins,
    and goes on from the longest state whose tokens are those of the text.

    A fork copies nothing. But transformers' caches make new tensors of all rows when they take further tokens, so a fork that
    goes on holds all of its rows itself.
    """

    def __init__(self) -> None:
        self.text: list[int] = []
        self._trunk: Trunk = {}
        self._checkpoints: list[CacheState] = []

    def expect(self, rows: int) -> None:
        """Nothing is reserved."""

    def move(self, sources: Listing[int], start: int) -> None:
        """The tokens tell."""

    def copy(self, rows: int) -> TextCache:
        twin = TextCache()
        twin.text, twin._trunk, twin._checkpoints = list(self.text), self._trunk, list(self._checkpoints)
        return twin

    def take(self, other: TextCache, start: int, stop: int) -> None:
        """Go on from what another cache holds of its first `stop` tokens, where that is more than what is held here."""
        if other._reach(stop) > self._reach(start):
            self.text, self._trunk = other.text[:stop], other._trunk
            self._checkpoints = [point for point in other._checkpoints if point.length <= stop or point.divisible]

    def _reach(self, length: int) -> int:
        """The longest text of at most `length` tokens that could be gone on from."""
        known = min(length, len(self.text))
        reached = [known if point.divisible else point.length for point in self._checkpoints]
        return max((length for length in reached if length <= known), default=0)

    def resume(self, text: Listing[int]) -> tuple[Any | None, int]:
        """A cache to go on from, and how many of the tokens of `text` it has read; (None, 0) where there is none."""
        shared = _common(self.text, text)
        for point in reversed(self._checkpoints):
            length = min(shared, point.length) if point.divisible else point.length
            if 0 < length <= shared:
                return point.at(length, self._trunk), length
        return None, 0

    def advance(self, text: Listing[int], made: Listing[CacheState], trunk: Trunk) -> None:
        """Remember the states that a pass has made on the way to `text`, of which the last is that of all of it."""
        shared = _common(self.text, text)
        earlier = [] if made[-1].divisible else [p for p in self._checkpoints if p.length <= shared]
        points = [*(p for p in earlier if p.length < made[0].length), *made]
        self.text, self._trunk, self._checkpoints = list(text), trunk, points[-room(made[-1].bytes) :]

    # What it takes

    @property
    def divisible(self) -> bool:
        """Whether any shorter text can be gone on from."""
        return bool(self._checkpoints) and self._checkpoints[-1].divisible

    @property
    def row_bytes(self) -> float:
        """Bytes of keys and values of each token, kept once for all states."""
        pairs = [tensor for pair in self._trunk.values() for tensor in pair]
        return sum(tensor.numel() * tensor.element_size() / tensor.shape[-2] for tensor in pairs)

    @property
    def state_bytes(self) -> list[tuple[int, int]]:
        """The lengths at which there are states, ascending, and the bytes of each."""
        return [(point.length, point.bytes) for point in self._checkpoints]


def room(size: int) -> int:
    """How many checkpoints of so many bytes are kept of a text."""
    return max(2, min(MOST_STATES, MOST_BYTES // max(1, size)))


def differ(one: Any, other: Any) -> float:
    """How much the tensors of two caches of the same text differ: of each the root mean square of the difference, as a share of
    its own; the largest. Infinite where they are not of the same shapes."""
    pairs = [[t for t in _tensors(cache, set()) if t.is_floating_point()] for cache in (one, other)]
    if [tensor.shape for tensor in pairs[0]] != [tensor.shape for tensor in pairs[1]]:
        return math.inf
    shares = [
        float((mine.float() - theirs.float()).norm() / theirs.float().norm().clamp_min(1e-9))
        for mine, theirs in zip(*pairs, strict=True)
        if theirs.numel()
    ]
    return max((math.inf if math.isnan(share) else share for share in shares), default=0.0)


def _common(one: Listing[int], other: Listing[int]) -> int:
    """How many first tokens two texts share."""
    shared = min(len(one), len(other))
    if one[:shared] == other[:shared]:
        return shared
    return next(place for place, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs)


def _layers(state: Any) -> Listing[Any]:
    """The layers of one of transformers' general caches; none where it is of another kind."""
    layers = getattr(state, "layers", None)
    return layers if isinstance(layers, list) else ()


def _copied(thing: Any, known: dict[int, Any]) -> Any:
    """A copy that shares nothing which a pass writes to. copy.deepcopy would copy configurations too, and the keys of sliding
    windows, which are replaced and never written to.

    known: id -> copy, of what has been met.
    """
    if id(thing) in known:
        return known[id(thing)]
    twin: Any
    if isinstance(thing, Tensor):
        twin = thing.clone()
    elif isinstance(thing, dict):
        twin = copy.copy(thing)
        for key, value in thing.items():
            twin[key] = _copied(value, known)
    elif isinstance(thing, list):
        twin = [_copied(item, known) for item in thing]
    elif isinstance(thing, tuple):
        items = [_copied(item, known) for item in thing]
        twin = type(thing)(*items) if hasattr(thing, "_fields") else tuple(items)
    elif _holds(thing):
        if getattr(type(thing), "update", None) is DynamicSlidingWindowLayer.update:
            known.update((id(t), t) for t in (thing.keys, thing.values))
        twin = copy.copy(thing)
        for name, value in vars(thing).items():
            twin.__dict__[name] = _copied(value, known)
    else:
        twin = thing
    known[id(thing)] = twin
    return twin


def _holds(thing: Any) -> bool:
    """Whether this is an object of a cache, and no part of a model or a class."""
    return (
        hasattr(thing, "__dict__")
        and not isinstance(thing, nn.Module | PretrainedConfig | type)
        and not callable(thing)
    )


def _tensors(thing: Any, met: set[int]) -> Iterator[Tensor]:
    """All tensors of a cache, each once."""
    if id(thing) in met:
        return
    met.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from _tensors(value, met)
    elif isinstance(thing, list | tuple):
        for item in thing:
            yield from _tensors(item, met)
    elif _holds(thing):
        yield from _tensors(vars(thing), met)
