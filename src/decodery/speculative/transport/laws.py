"""What the analysis takes as laws."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Masses = NDArray[np.float64]
"""Probabilities [vocabulary]."""


def law(masses: Any) -> Masses:
    """A law [vocabulary] in float64 from an array or tensor of masses. Raises ValueError where it is none."""
    row = np.asarray(masses, dtype=np.float64)
    total = row.sum() if row.ndim == 1 else np.nan
    if not np.isfinite(total) or total <= 0 or row.min() < 0:
        raise ValueError("a law must be a vector of masses that are not negative and not all zero")
    return row / total


def laws(p: Any, q: Any) -> tuple[Masses, Masses]:
    """Target and draft law over one vocabulary."""
    target, draft = law(p), law(q)
    if target.shape != draft.shape:
        raise ValueError(f"the target's law has {len(target)} tokens and the draft's {len(draft)}")
    return target, draft


def check_count(n: int) -> None:
    """Raise ValueError where there are no drafts."""
    if n < 1:
        raise ValueError(f"the number of drafts must be at least 1, not {n}")
