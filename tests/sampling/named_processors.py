"""Processors with names, as another package would register them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decodery.errors import BadSetting
from decodery.sampling.processors import FORBIDDEN, NamedProcessor, register_processor
from decodery.sampling.settings import TokenIds, Whole, setting


@register_processor
@dataclass(frozen=True)
class NoRepeatedRun(NamedProcessor):
    """No run of so many tokens comes twice, the prompt included (transformers' no_repeat_ngram_size)."""

    size: int = setting(None, Whole(1, 64), "Length of the runs.")

    name = "no-repeat-ngram"

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        text = ids[0].tolist()
        last = text[len(text) - self.size + 1 :]
        if len(text) >= self.size:
            starts = range(len(text) - self.size + 1)
            banned = {text[at + self.size - 1] for at in starts if text[at : at + self.size - 1] == last}
            scores[:, sorted(banned)] = FORBIDDEN
        return scores


@register_processor
@dataclass(frozen=True)
class OnlyTokens(NamedProcessor):
    """Only these tokens (vLLM's allowed_token_ids)."""

    token_ids: tuple[int, ...] = setting(None, TokenIds(), "The tokens that may come.")

    name = "allowed-tokens"

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise BadSetting("allowed-tokens needs at least one token id; with none, nothing could come.")

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        kept = torch.full_like(scores, FORBIDDEN)
        chosen = list(self.token_ids)
        kept[:, chosen] = scores[:, chosen]
        return kept
