"""A number is added to the scores of given tokens (OpenAI's logit_bias, transformers' sequence_bias of single tokens)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from decodery.errors import BadSetting
from decodery.plain import plain
from decodery.sampling.settings import ValueKind, check_token, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix


class Bias(ValueKind):
    """Token id -> number below infinity; minus infinity forbids the token."""

    option = list[str]

    def schema(self) -> Mapping[str, Any]:
        return {"type": "object", "additionalProperties": {"type": "number"}}

    def check(self, name: str, value: Any, vocabulary: int) -> dict[int, float]:
        if not isinstance(value, Mapping):
            raise BadSetting(f"{name} must map token ids to numbers, not be {value!r}.")
        bias = {}
        for token, given in value.items():
            number = plain(given)
            if (
                isinstance(number, bool)
                or not isinstance(number, int | float)
                or math.isnan(number)
                or number == math.inf
            ):
                raise BadSetting(f"{name} of token {token} must be a number below infinity, not {number!r}.")
            bias[check_token(name, token, vocabulary)] = float(number)
        return bias

    def read(self, given: Any) -> dict[int, float]:
        return dict(_pair(pair) for pair in given)


def _pair(pair: str) -> tuple[int, float]:
    token, equals, value = pair.partition("=")
    try:
        if not equals:
            raise ValueError
        return int(token), float(value)
    except ValueError:
        raise BadSetting(f"--logit-bias takes ID=VALUE, a token id and a number, not {pair!r}.") from None


@dataclass(frozen=True)
class LogitBias(Step):
    """Adds what is given for each token; minus infinity forbids it."""

    logit_bias: Mapping[int, float] = setting(
        dict,
        Bias(),
        "Added to the score of a token; may be repeated.",
        option=("--logit-bias",),
        metavar="ID=VALUE",
    )

    name = "logit_bias"
    place = 130
    places: ClassVar[Mapping[str, float]] = {"hf": 90, "vllm": 70, "llama.cpp": 60}

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        for token, value in self.logit_bias.items():
            rows[:, token] += value
        return rows
