"""Only the likeliest tokens that together reach a mass: nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery._lazy import np, torch
from decodery.sampling.forbidding import FORBIDDEN, WIDE, falling, forbid_below, on_cpu, threshold
from decodery.sampling.settings import Real, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.prefix import Prefix

FEW = 2048
"""The likeliest are those with more than this part of the mass that may be dropped: of a language model's law some hundred,
which reach p."""
ROUNDING = 2.0**-33
"""Times the vocabulary: how far two sums of a row's masses may differ by the order of their terms. Where p is closer to a sum
than that, the sum over all tokens from high to low decides."""


@dataclass(frozen=True)
class TopP(Step):
    """Keeps the smallest set of likeliest tokens whose mass reaches p, the lower ids among equals."""

    top_p: float = setting(
        1.0,
        Real(0.0, 1.0, open_low=True),
        "Only the likeliest tokens that together reach this mass.",
        option=("--top-p",),
    )

    name = "top_p"
    place = 310
    keeps_argmax = True

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        if not on_cpu(rows) or rows.shape[1] < WIDE:
            return self._of_all(rows)
        for place, row in enumerate(rows):
            least = self._of_few(row)
            if least is None:
                rows[place] = self._of_all(row[None])[0]
            else:
                threshold(row, least)
        return rows

    def _of_few(self, row: Tensor) -> float | None:
        """The least score that is kept of a row, found among the likeliest tokens; None where that takes a look at all."""
        probabilities = row.softmax(dim=-1).numpy()
        likely = np.flatnonzero(probabilities > (1 - self.top_p) / FEW)
        masses, scores = probabilities.take(likely), row.numpy().take(likely)
        masses.sort()
        scores.sort()
        sums = masses[::-1].cumsum(dtype=np.float64)
        last = int(sums.searchsorted(self.top_p))
        rounding = len(probabilities) * ROUNDING
        if last == len(sums) or sums[last] - self.top_p < rounding or (last and self.top_p - sums[last - 1] < rounding):
            return None
        least = float(scores[-1 - last])
        tied = last + 1 < len(sums) and scores[-2 - last] == least
        return None if tied else least

    def _of_all(self, rows: Tensor) -> Tensor:
        ordered, width = falling(rows), rows.shape[1]
        mass = ordered.softmax(dim=-1).cumsum(dim=-1)
        # A token is dropped when the mass of those before it already reaches p; the first always stays.
        border = torch.full((len(rows), 1), self.top_p, dtype=mass.dtype, device=mass.device)
        last = torch.searchsorted(mass, border).clamp_(max=width - 1)
        least = ordered.gather(1, last)
        # Of those equal to the last, as many as there is room for. More are rare, and looked for row by row.
        following = ordered.gather(1, (last + 1).clamp_(max=width - 1))
        tied = (following == least) & (least > FORBIDDEN) & (last < width - 1)
        kept = forbid_below(rows, least[:, 0])
        for row in tied[:, 0].nonzero().flatten().tolist():
            equal = (kept[row] == least[row]).nonzero().flatten()
            room = int(last[row]) + 1 - int((kept[row] > least[row]).sum())
            kept[row, equal[room:]] = FORBIDDEN
        return kept
