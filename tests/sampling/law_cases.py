"""Raw rows of all kinds, and laws of them, for the tests of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from decodery.sampling import Law, LawSettings

FORBIDDEN = float("-inf")
VOCABULARY = 60
texts = st.lists(st.integers(0, 5), min_size=4, max_size=30)


def rows(count: int, seed: int = 0, wide: int = VOCABULARY, holes: bool = True) -> Tensor:
    """Raw scores [count, wide] of all kinds: flat and sharp, with ties, with forbidden tokens."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, wide, generator=generator) * torch.linspace(0.3, 6.0, count)[:, None]
    found[::5] = found[::5].round()
    if holes:
        found[1::7, ::3] = FORBIDDEN
    return found


def law_of(text: Sequence[int] = (0,), stops: Sequence[int] = (), chance: Any = None, **settings: Any) -> Law:
    return Law(LawSettings(**{"temperature": 1.0, **settings}), text, stops, chance)


def kept(scores: Tensor) -> list[int]:
    return (scores > FORBIDDEN).nonzero()[:, 0].tolist()


def near(values: Tensor, border: float, tolerance: float = 1e-5) -> bool:
    """Whether a sum is so near the border that rounding decides."""
    return bool(((values - border).abs() < tolerance).any())
