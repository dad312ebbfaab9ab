"""What teaching a small model a large one's law needs: the divergence between both, at a cost that a few cores can pay.

The head of a usual vocabulary is most of the work, so each step looks at part of it: the tokens that the large model writes
most often, and others drawn at random, each of which stands for its share of those that were not drawn (importance sampling,
as in Jean et al., arXiv 1412.2007).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decodery.training.answers import OwnAnswer

CHUNK = 128
"""Rows whose scores are there at once: they stay in the processor's cache."""


@dataclass(frozen=True)
class PartOfVocabulary:
    """weights: [m, hidden] rows of the head. correction: [m] float32, what is added to the scores of tokens that stand for
    several."""

    weights: Tensor
    correction: Tensor


class SampledVocabulary:
    """A head [vocabulary, hidden] whose steps look at the `frequent` most written tokens and `drawn` others; at all of it,
    where both together are as many."""

    def __init__(self, head: Tensor, answers: Sequence[OwnAnswer], frequent: int, drawn: int):
        counts = torch.bincount(
            torch.tensor([token for answer in answers for token in answer.output]), minlength=len(head)
        )
        order = counts.argsort(descending=True, stable=True)
        if frequent + drawn >= len(head):
            frequent, drawn = len(head), 0
        self._head, self._drawn = head, drawn
        self._rest = order[frequent:]
        self._frequent = head[order[:frequent]]
        self.covered = float(counts[order[:frequent]].sum() / counts.sum())
        """Share of the written tokens that are frequent ones."""

    def part(self, generator: torch.Generator) -> PartOfVocabulary:
        """What a step looks at."""
        correction = torch.zeros(len(self._frequent) + self._drawn)
        if not self._drawn:
            return PartOfVocabulary(self._frequent, correction)
        places = torch.randperm(len(self._rest), generator=generator)[: self._drawn]
        correction[len(self._frequent) :] = math.log(len(self._rest) / self._drawn)
        return PartOfVocabulary(torch.cat([self._frequent, self._head[self._rest[places]]]), correction)


class _Divergence(torch.autograd.Function):
    """The gradient is computed with the value, chunk by chunk, so that no scores of all rows are ever kept."""

    @staticmethod
    def forward(context: Any, rows: Tensor, target: Tensor, weights: Tensor, correction: Tensor) -> Tensor:
        gradient = torch.empty_like(rows)
        total = 0.0
        for start in range(0, len(rows), CHUNK):
            span = slice(start, start + CHUNK)
            own = (rows[span].to(weights.dtype) @ weights.T).float().add_(correction)
            true = (target[span].to(weights.dtype) @ weights.T).float().add_(correction)
            own -= own.logsumexp(dim=-1, keepdim=True)
            true -= true.logsumexp(dim=-1, keepdim=True)
            law = true.exp()
            total += float((law * true.sub_(own)).sum())
            gradient[span] = (own.exp_().sub_(law).to(weights.dtype) @ weights).to(gradient.dtype)
        context.save_for_backward(gradient.div_(len(rows)))
        return rows.new_tensor(total / len(rows))

    @staticmethod
    def backward(context: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        [gradient] = context.saved_tensors
        return outer[0] * gradient, None, None, None


def divergence(rows: Tensor, target: Tensor, part: PartOfVocabulary) -> Tensor:
    """The mean divergence, in nats, of the laws of `rows` from those of `target`, both [n, hidden] and before the head."""
    found: Tensor = _Divergence.apply(rows, target, part.weights, part.correction)  # type: ignore[no-untyped-call]
    return found
