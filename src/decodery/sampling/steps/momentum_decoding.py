"""Momentum decoding: greedy decoding in which a token that was there before meets a resistance, the greater the longer the
repetition that it would continue (Lan et al. 2022, Momentum Decoding, arXiv 2212.02175)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from decodery._lazy import torch
from decodery.errors import BadSetting
from decodery.sampling.forbidding import FORBIDDEN, highest
from decodery.sampling.repetition import repetitions
from decodery.sampling.settings import Flag, Real, ValueKind, Whole, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix

RESISTANCE = (1.0, 3.0, 4.0, 5.0, 5.0)
"""Of repetitions of 1, 2, … tokens, in the official code on the day of the paper's release."""


class Resistances(ValueKind):
    """Numbers of at least 0 that do not fall."""

    option = list[float]

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 1}

    def check(self, name: str, value: Any, vocabulary: int) -> tuple[float, ...]:
        table = tuple(Real(0.0).check(name, number, vocabulary) for number in value)
        if not table or list(table) != sorted(table):
            raise BadSetting(
                f"{name} needs one number or more, none of which is less than the one before, not {value!r}."
            )
        return table


@dataclass(frozen=True)
class MomentumDecoding(Step):
    """Of the k likeliest tokens the one of the highest probability minus alpha times its resistance; all others are forbidden.

    Among equals the likelier token wins. It is the last step: it chooses among what the others leave.
    """

    momentum_alpha: float = setting(
        0.0,
        Real(0.0),
        "Momentum decoding: weight of the resistance that repetitions meet (published: 0.2); 0: off.",
        option=("--momentum-alpha",),
    )
    momentum_k: int = setting(5, Whole(1), "The likeliest tokens among which it chooses.", option=("--momentum-k",))
    momentum_longest: int = setting(
        5, Whole(1), "Repetitions of more tokens count as such of that many.", option=("--momentum-longest",)
    )
    momentum_resistance: tuple[float, ...] = setting(
        RESISTANCE,
        Resistances(),
        "Resistance of repetitions of 1, 2, … tokens, the last for all longer ones; may be repeated.",
        option=("--momentum-resistance",),
    )
    momentum_ends_resist: bool = setting(
        False,
        Flag(),
        "End tokens and other special ones meet resistance like all, as in the official code; otherwise they meet none.",
        option=("--momentum-ends-resist",),
    )

    name = "momentum_decoding"
    place = 500
    reads_prefix = True
    greedy_only = "it is a rule that chooses a token, and its scores are no law to draw from"

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        for row, prefix in zip(rows, prefixes, strict=True):
            law, ids = row.softmax(dim=-1), highest(row, self.momentum_k)
            lengths = self.lengths(prefix)
            resistance = torch.tensor([self._resistance(lengths.get(token, 0)) for token in ids.tolist()])
            scores = law[ids].double() - self.momentum_alpha * resistance.to(law.device, torch.float64)
            # The order is all that greedy decoding looks at, and the lower id wins among equals: the likelier one is to win.
            ranks = torch.empty(len(ids), dtype=row.dtype, device=row.device)
            ranks[scores.argsort(descending=True, stable=True)] = -torch.arange(len(ids), device=row.device).to(row)
            forbidden = row[ids] == FORBIDDEN
            row.fill_(FORBIDDEN)
            row[ids] = ranks.masked_fill(forbidden, FORBIDDEN)
        return rows

    def label(self, row: Tensor, prefix: Prefix) -> int:
        """What became of the likeliest token of scores [vocabulary] that the steps before it leave: 0: it met no resistance,
        so it was chosen; 1: it met some and was chosen; 2: another one was."""
        likeliest = int(highest(row, 1)[0])
        if likeliest not in self.lengths(prefix):
            return 0
        [chosen] = self.apply(row.clone()[None], [prefix])
        return 1 if int(highest(chosen, 1)[0]) == likeliest else 2

    def lengths(self, prefix: Prefix) -> dict[int, int]:
        """Token -> how many tokens would be repeated if it came next, itself included: 1 where it was there before behind
        others. Tokens that meet no resistance are not there."""
        found = dict.fromkeys(prefix.counts(), 1)
        before = self.momentum_longest - 1
        found.update((token, 1 + length) for token, length in repetitions(prefix.tokens, before).items())
        for token in () if self.momentum_ends_resist else (*prefix.stop_ids, *prefix.special_ids):
            found.pop(token, None)
        return found

    def _resistance(self, length: int) -> float:
        table = self.momentum_resistance
        return table[min(length, len(table)) - 1] if length else 0.0
