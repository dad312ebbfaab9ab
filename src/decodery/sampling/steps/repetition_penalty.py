"""Tokens seen before, in the prompt or the output, become less likely (CTRL, Keskar et al. 2019, arXiv 1909.05858)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.sampling.settings import Real, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix


@dataclass(frozen=True)
class RepetitionPenalty(Step):
    """Divides positive scores of such tokens by the penalty, and multiplies negative ones."""

    repetition_penalty: float = setting(
        1.0, Real(0.0, open_low=True), "Factor against tokens seen before.", option=("--repetition-penalty",)
    )

    name = "repetition_penalty"
    place = 100
    reads_prefix = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        for scores, prefix in zip(rows, prefixes, strict=True):
            ids = torch.tensor(list(prefix.counts()), dtype=torch.long, device=rows.device)
            seen, penalty = scores[ids], self.repetition_penalty
            scores[ids] = torch.where(seen > 0, seen / penalty, seen * penalty)
        return rows
