"""Several models as one: the mean of what they hold likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from decodery.engine.parameters import parameter
from decodery.engine.target import Member, Target, companion
from decodery.errors import BadParameter

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.host import Host


@dataclass(frozen=True)
class Ensemble(Target):
    """The mean of the models' probabilities, or of their log probabilities (a product of experts)."""

    name: ClassVar[str] = "ensemble"
    title: ClassVar[str] = "Ensemble"
    paper: ClassVar[str] = (
        "linear and logarithmic opinion pools; Genest & Zidek, Combining Probability Distributions, 1986"
    )

    models: str = parameter("", "names or folders of the other models, with + between them; same tokenizer")
    mean: str = parameter("probabilities", "what is averaged", choices=("probabilities", "logarithms"))

    def check(self) -> None:
        if not self.models:
            raise BadParameter("ensemble needs other models: ensemble(models=NAME+NAME).")

    def members(self, host: Host, prompt: Sequence[int]) -> Sequence[Member]:
        return [Member(companion(host, name.strip(), self.name)) for name in self.models.split("+")]

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        laws = torch.stack([torch.log_softmax(each, dim=-1) for each in rows])
        if self.mean == "logarithms":
            return laws.mean(dim=0)
        return laws.logsumexp(dim=0) - torch.tensor(float(len(rows))).log()
