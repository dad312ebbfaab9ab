"""A drafter that reads the text itself: which token stood behind which, in all that is known of a window."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from decodery._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class ContextNgrams:
    """Counts of neighbours, and of tokens where nothing is known of one's successors (Guo & Ermon, arXiv 2504.20456,
    context_ngram.py). Every position counts once, every pair when the second of it becomes known, on whichever side."""

    def __init__(self, vocabulary: int):
        self._vocabulary = vocabulary
        self._known: dict[int, int] = {}
        self._tokens: Counter[int] = Counter()
        self._behind: defaultdict[int, Counter[int]] = defaultdict(Counter)

    def know(self, position: int, token: int) -> None:
        """The token of a position is known now. Raises ValueError where it was known before."""
        if position in self._known:
            raise ValueError(f"position {position} is counted already")
        self._known[position] = token
        self._tokens[token] += 1
        if (left := self._known.get(position - 1)) is not None:
            self._behind[left][token] += 1
        if (right := self._known.get(position + 1)) is not None:
            self._behind[token][right] += 1

    def law(self, left: int) -> Tensor:
        """Probabilities [vocabulary] float64 of the token behind `left`. Raises ValueError where nothing is known at all."""
        counts = self._behind.get(left) or self._tokens
        if not counts:
            raise ValueError("nothing is known yet, so nothing can be drafted")
        found = torch.zeros(self._vocabulary, dtype=torch.float64)
        found[list(counts)] = torch.tensor(list(counts.values()), dtype=torch.float64)
        return found / found.sum()
