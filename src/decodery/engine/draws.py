"""The laws of all rows that are drawn from in a round, computed together.

Which rows are drawn from is known before the first draw: the row of every request that has its scores. Those with equal steps
go through them together, as many at a time as a processor's cache holds. Nothing is computed before somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from decodery.sampling.law import processed

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.law import Law

CACHED = 1 << 16
"""Numbers that a processor works on at a time: more do not stay in its cache, and come in fresh pages of memory, which takes
longer than all that is computed of them."""
EVERYTHING = 1 << 20
"""Rows at a time, where there is no such limit."""


class Together:
    """Laws with the same steps, and a row of each, [vocabulary] raw scores."""

    def __init__(self, laws: list[Law], rows: list[Tensor]):
        self.members = laws, rows
        self._found: Tensor | None = None
        self._failed = False

    def scores(self, place: int) -> Tensor | None:
        """Processed scores [vocabulary] float32 of the law at `place`; None where some row could not be processed: then
        each does it alone, and only the request whose fault it is meets the error."""
        if self._found is None and not self._failed:
            laws, rows = self.members
            try:
                self._found = processed(torch.stack(rows), laws[0].steps, [law.prefix() for law in laws])
            except Exception:
                self._failed = True
        return None if self._found is None else self._found[place]


def foresee(drawing: Iterable[tuple[Law, Tensor]]) -> None:
    """Tell laws that each will likely be asked for the law of its row next, [vocabulary] raw scores. Those with equal steps
    share the work; numbers are the same as alone."""
    groups: list[tuple[list[Law], list[Tensor]]] = []
    for law, row in drawing:
        if law.greedy or law.stateful or not law.steps or _at_once(row) < 2:
            continue
        for laws, rows in groups:
            if laws[0].steps == law.steps and rows[0].shape == row.shape and rows[0].device == row.device:
                laws.append(law)
                rows.append(row)
                break
        else:
            groups.append(([law], [row]))
    for laws, rows in groups:
        size = _at_once(rows[0])
        for start in range(0, len(laws), size):
            together = Together(laws[start : start + size], rows[start : start + size])
            for place, (law, row) in enumerate(zip(*together.members, strict=True)):
                law.foresee(row, lambda together=together, place=place: together.scores(place))  # type: ignore[misc]


def _at_once(row: Tensor) -> int:
    """How many such rows are worked on together. A law alone does the same with its one row."""
    return EVERYTHING if row.is_cuda else CACHED // row.shape[0]
