"""Draft laws: what any drafter that gives probabilities holds likely next, whether a network is behind it or not.

Methods that draw their drafts at random need three things of a drafter: the law it draws from (processed as the target's
is), level by level as the tree grows, and that it keeps up with the committed text. That is all a `DraftLaws` is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from decodery._lazy import torch
from decodery.models.forward import Forward
from decodery.speculative.loop import Round

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.forward import Scores

Path: TypeAlias = tuple[int, ...]
"""The drafted tokens from the first after the committed text down to a node; empty for the root."""


class DraftLaws(ABC):
    """The draft laws of one request.

    A law is a tensor [vocabulary] float32: the probabilities of the processed draft law, or in greedy decoding the
    processed scores, of which only the order matters. None in place of a law: nothing can be drafted there, for the drafter
    cannot read the text or every token that it knows is forbidden.
    """

    def __init__(self, request: Request):
        self.request = request

    @abstractmethod
    def root(self, tokens: Sequence[int]) -> Generator[Forward, Scores, Tensor | None]:
        """The law after the committed `tokens`. Begins a new draft."""

    @abstractmethod
    def after(self, paths: Sequence[Path]) -> Generator[Forward, Scores, list[Tensor | None]]:
        """The law after each of `paths`, all of one level of the tree. The level above has been asked for before; equal
        paths are allowed, and cost nothing."""

    def observe(self, round: Round) -> None:  # noqa: B027
        """See what became of the draft. Called after every round."""

    def processed(self, row: Tensor, path: Path) -> Tensor | None:
        """The law of a raw row of scores [vocabulary] after the committed text and `path`: the target's own processing."""
        law = self.request.law.drafting
        scores = law.scores(row, path)
        if not math.isfinite(float(scores.max())):
            return None
        return scores if law.greedy else torch.log_softmax(scores.float(), dim=-1).exp()
