"""Classifier-free guidance of a causal model: away from what it would say to another prompt, or to none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from decodery.engine.parameters import parameter
from decodery.engine.target import Member, Target

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.host import Host


@dataclass(frozen=True)
class Guidance(Target):
    """log p = log p(negative) + scale * (log p(prompt) - log p(negative)), of one model after two prompts.

    Published: Sanchez et al. 2023, section 2.2, where the negative prompt is empty: the model then sees the last token of the
    prompt alone. A scale of 1 is the model itself.
    """

    name: ClassVar[str] = "guidance"
    title: ClassVar[str] = "Classifier-free guidance"
    paper: ClassVar[str] = "Sanchez et al., Stay on topic with Classifier-Free Guidance, 2023, arXiv:2306.17806"

    scale: float = parameter(1.5, "how far from the negative prompt; 1 is plain decoding", low=0.0)
    negative: str = parameter("", "text that the output is to be unlike; empty: the prompt's last token alone")

    def members(self, host: Host, prompt: Sequence[int]) -> Sequence[Member]:
        ids = tuple(host.encode(self.negative)) if self.negative else ()
        return [Member(host.network, ids or tuple(prompt[-1:]))]

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        mine, negative = (torch.log_softmax(each, dim=-1) for each in rows)
        # What the prompt itself forbids stays forbidden: there is no difference of two infinities.
        return torch.where(mine.isneginf(), mine, negative + self.scale * (mine - negative))
