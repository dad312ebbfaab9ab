"""DoLa: what the last layer holds likelier than an earlier one does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, ClassVar

import torch

from decodery.engine.parameters import parameter
from decodery.engine.target import Member, Target
from decodery.errors import BadParameter, MethodUnavailable

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from decodery.engine.host import Host
    from decodery.models.scorer import Scorer

DEEP = 40
"""Of a network with more layers, 20 are looked at from its beginning or end, as in the paper."""


@dataclass(frozen=True)
class ContrastedLayers(Target):
    """log p(last layer) - log p(earlier layer), over the tokens that have at least alpha of the last layer's largest
    probability. The earlier layer is chosen at each position: the candidate whose law differs most from the last layer's.

    Layers are read through the network's head, in the pass that is made anyway: by itself, as in the paper, the official code
    and transformers, or behind the final norm.
    """

    name: ClassVar[str] = "dola"
    title: ClassVar[str] = "DoLa: decoding by contrasting layers"
    paper: ClassVar[str] = (
        "Chuang et al., DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models, 2023, "
        "arXiv:2309.03883"
    )

    layers: int | str = parameter(
        "low",
        "candidates: low or high (every second layer of that half), or numbers of layers joined by +, as in 2+4+6",
    )
    alpha: float = parameter(0.1, "share of the largest probability that a token needs", low=0.0, high=1.0)
    divergence: str = parameter(
        "paper",
        "how laws differ: Jensen and Shannon's divergence, or what the official code computes, with its arguments exchanged",
        choices=("paper", "code"),
    )
    norm: bool = parameter(False, "earlier layers go through the final norm too, as the last one does, before the head")

    @property
    def norms_taps(self) -> bool:
        return self.norm

    def check(self) -> None:
        if not re.fullmatch(r"low|high|\d+(\+\d+)*", str(self.layers)):
            raise BadParameter(f"dola: layers are low, high, or numbers joined by +, not {self.layers!r}.")

    def members(self, host: Host, prompt: Sequence[int]) -> Sequence[Member]:
        if host.network.hidden is None:
            raise MethodUnavailable(f"dola: {host.network.name} has no hidden rows to read its layers from.")
        self.taps(host.network)
        return []

    def taps(self, network: Scorer) -> tuple[int, ...]:
        count = network.layers
        if self.layers == "low":
            depths = range(2, 20 if count > DEEP else count // 2, 2)
        elif self.layers == "high":
            depths = range(max(2, count - 20 if count > DEEP else count // 2), count, 2)
        else:
            depths = sorted({int(depth) for depth in str(self.layers).split("+")})  # type: ignore[assignment]
        found = [depth for depth in depths if 0 < depth < count]
        if self.layers not in ("low", "high") and len(found) < len(depths):
            raise BadParameter(
                f"dola: {network.name} has {count} layers, so layers are 1 to {count - 1}, not {self.layers}."
            )
        return tuple(depth - 1 for depth in found or [max(1, count // 2)])

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        last, *earlier = (torch.log_softmax(each, dim=-1) for each in rows)
        chosen = self.chosen(last, earlier)
        places = torch.arange(len(last), device=last.device)
        contrast = last - torch.stack(earlier)[chosen, places]
        least = last.amax(dim=-1, keepdim=True) + (log(self.alpha) if self.alpha else -torch.inf)
        return torch.where((last < least) | last.isneginf(), -torch.inf, contrast)

    def chosen(self, last: Float[Tensor, "n vocabulary"], earlier: Sequence[Tensor]) -> Tensor:
        """Which of the earlier layers, given all log probabilities, is contrasted in each row: [n]."""
        shares = last.exp()
        return torch.stack([self._difference(last, shares, each) for each in earlier]).argmax(dim=0)

    def _difference(self, one: Tensor, shares: Tensor, other: Tensor) -> Tensor:
        """How far two laws are from each other, [n]; shares: the probabilities of the first, all else log probabilities
        [n, vocabulary]. What has no probability adds nothing."""
        others = other.exp()
        middles = (shares + others) / 2
        middle = middles.log()
        if self.divergence == "code":
            terms = middles * (2 * middle - one - other)
        else:
            terms = shares * (one - middle) + others * (other - middle)
        return terms.nan_to_num(nan=0.0, posinf=torch.inf).sum(dim=-1) / 2
