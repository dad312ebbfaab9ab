"""A user's own functions of the text and the scores, as transformers calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from decodery._lazy import torch
from decodery.sampling.processors import NamedProcessors
from decodery.sampling.settings import setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix

FORBIDDEN = float("-inf")


@dataclass(frozen=True)
class Processors(Step):
    """Calls each with (input_ids [1, n], scores [1, vocabulary]) for its scores.

    Before the least length stop tokens stay forbidden. Where processors leave nothing but stop tokens, they are not heard
    before.
    """

    processors: tuple[Callable[[Any, Any], Any], ...] = setting(
        (),
        NamedProcessors(),
        "Functions (input_ids, scores) that change the scores, or names of processors with their arguments.",
        aliases=("logits_processor",),
    )

    name = "processors"
    place = 150
    places: ClassVar[Mapping[str, float]] = {"vllm": 80, "llama.cpp": 80}
    reads_prefix = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        return torch.cat([self._one(rows[i : i + 1], prefix) for i, prefix in enumerate(prefixes)])

    def _one(self, scores: Tensor, prefix: Prefix) -> Tensor:
        ids = torch.tensor([list(prefix.tokens)], device=scores.device)
        early = prefix.new_tokens < prefix.least and bool(prefix.stop_ids)
        row = scores.clone() if early else scores  # processors may work in place
        for processor in self.processors:
            row = processor(ids, row)
        return _without_ends(row[0], scores[0], prefix)[None] if early else row


def _without_ends(wanted: Tensor, before: Tensor, prefix: Prefix) -> Tensor:
    """Processed scores with the stop tokens forbidden; the scores before, where only stop tokens were allowed."""
    stops = torch.tensor(prefix.stop_ids, device=wanted.device)
    scores = wanted.index_fill(0, stops, FORBIDDEN)
    forced = bool((scores == FORBIDDEN).all()) and bool((wanted[stops] > FORBIDDEN).any())
    return before.index_fill(0, stops, FORBIDDEN) if forced else scores
