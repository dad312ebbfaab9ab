"""Only given tokens (vLLM's allowed_token_ids)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.sampling.forbidding import FORBIDDEN
from decodery.sampling.settings import Optional, TokenIds, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix


@dataclass(frozen=True)
class AllowedTokens(Step):
    """Forbids all other tokens. End tokens are forbidden with them, unless they are among the given ones."""

    allowed_token_ids: tuple[int, ...] | None = setting(
        None,
        Optional(TokenIds(least=1)),
        "The only tokens that may come; may be repeated.",
        option=("--allowed-token-id",),
    )

    name = "allowed_token_ids"
    place = 145
    places: ClassVar[Mapping[str, float]] = {"vllm": 40}
    makes_rows = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        ids = torch.tensor(self.allowed_token_ids, dtype=torch.long, device=rows.device)
        return torch.full_like(rows, FORBIDDEN).index_copy_(1, ids, rows[:, ids])
