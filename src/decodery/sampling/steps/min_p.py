"""Only tokens that are not much less likely than the likeliest (Nguyen et al. 2024, arXiv 2407.01082)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.sampling.settings import Real, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix

FORBIDDEN = float("-inf")


@dataclass(frozen=True)
class MinP(Step):
    """Keeps tokens at least min_p times as likely as the likeliest."""

    min_p: float = setting(
        0.0, Real(0.0, 1.0), "Only tokens at least this share as likely as the likeliest.", option=("--min-p",)
    )

    name = "min_p"
    place = 320
    places: ClassVar[Mapping[str, float]] = {"vllm": 290}
    keeps_argmax = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        probabilities = rows.softmax(dim=-1)
        return torch.where(probabilities < self.min_p * probabilities.amax(-1, keepdim=True), FORBIDDEN, rows)
