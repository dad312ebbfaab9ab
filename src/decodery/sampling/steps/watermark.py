"""A watermark of the output: the setting, and those marks that are a step of the law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.sampling.forbidding import FORBIDDEN
from decodery.sampling.settings import setting
from decodery.sampling.steps.base import Step
from decodery.sampling.watermarks.keys import GreenKey, TournamentKey, WatermarkKey, WatermarkKeys

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix


@dataclass(frozen=True)
class Watermark(Step):
    """Raises green tokens, or holds a tournament, as the key says. It comes last, as in transformers; the other keys are
    spent by the draws (`sampling/chance/watermark.py`), and leave the law alone."""

    watermark: WatermarkKey | None = setting(  # noqa: RUF009 (a dataclass field like the others)
        None,
        WatermarkKeys(),
        "The key of a watermark that `decodery detect` finds; on the command line a file by `decodery watermark`.",
        option=("--watermark",),
        metavar="KEY.json",
    )

    name = "watermark"
    place = 500
    reads_prefix = True

    @property
    def active(self) -> bool:
        return self.watermark is not None and not self.watermark.drawn

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        key = self.watermark
        for row, prefix in zip(rows, prefixes, strict=True):
            if isinstance(key, GreenKey):
                green = key.green(_last(prefix.tokens, key.window))
                row += key.bias * torch.from_numpy(green).to(row.device, row.dtype)
            elif isinstance(key, TournamentKey) and not _seen(prefix, key.window):
                _hold_tournament(row, key, _last(prefix.tokens, key.window))
        return rows


def _last(tokens: Sequence[int], count: int) -> list[int]:
    return list(tokens[max(len(tokens) - count, 0) :])


def _seen(prefix: Prefix, window: int) -> bool:
    """Whether the last tokens have been the last ones before an earlier token of the output, too."""
    tokens, first = prefix.tokens, len(prefix.tokens) - prefix.new_tokens
    last = _last(tokens, window)
    recent = list(tokens[max(first - window, 0) :])
    ends = range(first - max(first - window, 0), len(recent))
    return any(recent[max(end - window, 0) : end] == last for end in ends)


def _hold_tournament(row: Tensor, key: TournamentKey, context: Sequence[int]) -> None:
    """The law of who wins all rounds, in place of a row of scores: a token gains in each round what it wins of those with the
    other bit (Dathathri et al., supplement, the vectorised form for two candidates)."""
    ids = (row > FORBIDDEN).nonzero()[:, 0]
    law = row[ids].double().softmax(0)
    bits = torch.from_numpy(key.bits(context)[ids.cpu().numpy()].astype("int64")).to(row.device)
    for layer in range(key.layers):
        won = (bits >> layer & 1).double()
        law = law * (1 + won - law @ won).clamp_min(0)
    row[ids] = law.log().to(row.dtype)
