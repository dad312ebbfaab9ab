"""Which decoder layers of a network a forward runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Layers:
    """A choice of decoder layers: `start <= layer < stop`, without those in `skip`.

    With `start > 0` the forward's `tokens` must be the hidden rows that enter layer `start`. `skip_attention` and `skip_mlp`
    name layers of which only one half is left out. What is left out is the identity on the residual stream; an attention
    that is left out writes no keys and values.
    """

    start: int = 0
    stop: int | None = None
    skip: frozenset[int] = frozenset()
    skip_attention: frozenset[int] = frozenset()
    skip_mlp: frozenset[int] = frozenset()

    @lru_cache(maxsize=4096)  # noqa: B019 (asked several times a pass; what is kept are small numbers)
    def indices(self, count: int) -> tuple[int, ...]:
        """The layers to run, at least in part, in a network of `count` layers. Raises ValueError where none or an unknown
        one is named."""
        stop = count if self.stop is None else self.stop
        skip = self.skip | (self.skip_attention & self.skip_mlp)
        named = self.skip | self.skip_attention | self.skip_mlp
        if not 0 <= self.start < stop <= count or not all(0 <= i < count for i in named):
            skipped = f" without {sorted(named)}" if named else ""
            raise ValueError(f"layers {self.start}..{stop}{skipped} do not lie within the network's {count} layers")
        chosen = tuple(i for i in range(self.start, stop) if i not in skip)
        if not chosen:
            raise ValueError(f"no layer is left of {self.start}..{stop} without {sorted(skip)}")
        return chosen

    @lru_cache(maxsize=4096)  # noqa: B019 (as above)
    def sublayers(self, count: int) -> int:
        """How many attentions and feed-forwards run in a network of `count` layers; 2 * count where all do."""
        running = self.indices(count)
        return sum((i not in self.skip_attention) + (i not in self.skip_mlp) for i in running)

    def completes(self, count: int) -> bool:
        """Whether rows that went through all layers before `start` have gone through all `count` layers after this."""
        return self.sublayers(count) == 2 * (count - self.start)


ALL_LAYERS = Layers()
