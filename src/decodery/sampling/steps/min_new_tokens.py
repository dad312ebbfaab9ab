"""No end before a number of new tokens: until then stop tokens are impossible (transformers' min_new_tokens, vLLM's
min_tokens)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.sampling.settings import Whole, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix

FORBIDDEN = float("-inf")


@dataclass(frozen=True)
class MinNewTokens(Step):
    """Forbids stop tokens before the least length, whatever processors say (see there)."""

    min_new_tokens: int = setting(
        0, Whole(0), "No end before that many.", aliases=("min_tokens",), option=("--min-new-tokens",)
    )

    name = "min_new_tokens"
    place = 140
    places: ClassVar[Mapping[str, float]] = {"vllm": 60, "llama.cpp": 70}
    reads_prefix = True
    counts_only = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        for scores, prefix in zip(rows, prefixes, strict=True):
            if prefix.new_tokens < self.min_new_tokens:
                scores[prefix.stop_ids] = FORBIDDEN
        return rows
