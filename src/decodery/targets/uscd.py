"""USCD: where the model is unsure, less of what it would write after the same prompt without its examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from decodery.engine.parameters import parameter
from decodery.engine.target import Member, Target

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from decodery.engine.host import Host


QUOTES = ('"""', "'''")


@dataclass(frozen=True)
class UncertaintyAwareContrast(Target):
    """Where the probabilities differ so little that the model is unsure: p(prompt) - eta * p(lame prompt), over the tokens of
    at least floor / vocabulary; where it is sure: the model itself.

    The spread is their standard deviation, times the root of the vocabulary: 0 for a uniform law, 1 for a certain one. So the
    threshold is the same for every vocabulary; published 0.0050 at 32016 tokens is 0.895, and the code's default 0.626. Unlike
    contrastive decoding it subtracts probabilities.
    """

    name: ClassVar[str] = "uscd"
    title: ClassVar[str] = "Uncertainty-aware selective contrastive decoding"
    paper: ClassVar[str] = (
        "Wang et al., USCD: Improving Code Generation of LLMs by Uncertainty-Aware Selective Contrastive Decoding, 2024, "
        "arXiv:2409.05923 (github alphadl/CodeGen-USCD)"
    )

    rho: float = parameter(0.895, "spread above which the model is sure; below 0 it always is", low=-1.0, high=1.001)
    floor: float = parameter(2 / 3, "least probability of a token, times the vocabulary", low=0.0)
    eta: float = parameter(0.7, "weight of the lame prompt", low=0.0, high=1.0)
    lame: str = parameter("", "the lame prompt; empty: the prompt without its examples")
    remove: str = parameter(
        "doctests",
        "what the examples are: lines of doctests with what they print, or assertions",
        choices=("doctests", "assertions"),
        only={"lame": ""},
    )
    deferred: bool = parameter(
        False, "the lame prompt is read only where the model is unsure, with all tokens since then at once"
    )

    @property
    def defers(self) -> bool:
        return self.deferred

    def asks(self, rows: Tensor) -> Tensor:
        return self.unsure(rows)

    def members(self, host: Host, prompt: Sequence[int]) -> Sequence[Member]:
        if self.lame:
            return [Member(host.network, tuple(host.encode(self.lame)))]
        text = host.tokenizer.decode(list(prompt))
        lame = without_doctests(text) if self.remove == "doctests" else without_assertions(text)
        # A prompt without examples is its own lame prompt, token by token, whatever its text would be split into.
        return [Member(host.network, tuple(prompt) if lame == text else tuple(host.encode(lame)) or tuple(prompt[-1:]))]

    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        own, lame = rows
        contrasted = self.unsure(own)
        mixed = own.clone()
        for place in contrasted.nonzero()[:, 0].tolist():
            mixed[place] = self._contrast(own[place], lame[place])
        return mixed

    def unsure(self, rows: Float[Tensor, "n vocabulary"]) -> Tensor:
        """Which rows are contrasted, [n] bool."""
        return torch.stack([spread(row) <= self.rho for row in rows])

    def _contrast(self, own: Tensor, lame: Tensor) -> Tensor:
        law, away = own.double().softmax(dim=-1), lame.double().softmax(dim=-1)
        there = own > -torch.inf
        kept = (law >= self.floor / int(there.sum())) & there
        left = torch.where(kept, law - self.eta * away, 0.0)
        # Where the lame prompt leaves nothing, the model itself.
        return (left.log().masked_fill(left <= 0, -torch.inf)).to(own) if bool((left > 0).any()) else own


def spread(row: Float[Tensor, "vocabulary"]) -> Tensor:
    """The standard deviation of a row's probabilities, times the root of their number: [] float64 from 0 to 1. Forbidden tokens
    are none."""
    law = row[row > -torch.inf].double().softmax(dim=-1)
    size = len(law)
    if size < 2:
        return torch.ones((), dtype=torch.float64)
    return (((law * law).sum() - 1 / size).clamp_min(0) / (size - 1)).sqrt() * math.sqrt(size)


def without_doctests(text: str) -> str:
    """The text without lines that begin with >>> or, behind such a line, ..., and without what they print: the lines behind
    them up to a blank one, another example or the end of the docstring."""
    kept, printed = [], False
    for line in text.split("\n"):
        bare = line.strip()
        if bare.startswith(">>>") or (printed and bare.startswith("...")):
            printed = True
        elif not printed or not bare or bare in QUOTES:
            printed = False
            kept.append(line)
            continue
        for quotes in QUOTES:  # the docstring ends on the same line
            if bare.endswith(quotes):
                printed = False
                kept.append(line[: len(line) - len(line.lstrip())] + quotes)
    return "\n".join(kept)


def without_assertions(text: str) -> str:
    """The text without lines that begin with assert."""
    return "\n".join(line for line in text.split("\n") if not line.strip().startswith("assert "))
