"""Contrastive decoding: what an expert holds likely and an amateur does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, ClassVar

import torch

from decodery.engine.parameters import parameter
from decodery.engine.target import Member, Target, companion
from decodery.errors import BadParameter

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.host import Host


@dataclass(frozen=True)
class Contrast(Target):
    """(1 + beta) * expert - beta * amateur, over the tokens that have at least alpha of the expert's largest probability.

    Published: O'Brien & Lewis 2023, equation 1, on raw scores; Li et al. 2023 is its limit for a large beta, with log
    probabilities and the amateur's temperature at 1.
    """

    name: ClassVar[str] = "contrast"
    title: ClassVar[str] = "Contrastive decoding"
    paper: ClassVar[str] = (
        "O'Brien & Lewis, Contrastive Decoding Improves Reasoning in Large Language Models, 2023, arXiv:2309.09117; "
        "Li et al., Contrastive Decoding: Open-ended Text Generation as Optimization, 2023, arXiv:2210.15097"
    )

    amateur: str = parameter("", "name or folder of a smaller model with the same tokenizer")
    beta: float = parameter(0.5, "weight of the contrast; 0 is the expert within the mask", low=0.0)
    alpha: float = parameter(0.1, "share of the expert's largest probability that a token needs", low=0.0, high=1.0)

    def check(self) -> None:
        if not self.amateur:
            raise BadParameter(
                "contrast needs an amateur, the name or folder of a smaller model: contrast(amateur=NAME)."
            )

    def members(self, host: Host, prompt: Sequence[int]) -> Sequence[Member]:
        return [Member(companion(host, self.amateur, self.name))]

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        expert, amateur = rows
        mixed = (1 + self.beta) * expert - self.beta * amateur
        least = expert.amax(dim=-1, keepdim=True) + (log(self.alpha) if self.alpha else -torch.inf)
        return torch.where((expert < least) | expert.isneginf(), -torch.inf, mixed)
