"""Only tokens whose surprise is near the entropy: locally typical sampling (Meister et al. 2022, arXiv 2202.00666)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import np, torch
from decodery.sampling.entropy import entropies
from decodery.sampling.forbidding import FORBIDDEN, WIDE
from decodery.sampling.settings import Real, Whole, setting
from decodery.sampling.steps.base import Step

if TYPE_CHECKING:
    from jaxtyping import Float32
    from torch import Tensor

    from decodery.sampling.prefix import Prefix

BINS = 2048
"""Of a wide row the distances are counted in so many bins, and only those of the bin at the border are sorted."""


@dataclass(frozen=True)
class TypicalP(Step):
    """Keeps the tokens nearest to the entropy that together reach the mass, and all that are as near as the last of them. The
    likeliest token need not be among them, in greedy decoding either.

    Unlike transformers, which truncates by it last (order "hf"), it comes before the other truncations, so that the entropy is
    that of the whole law.
    """

    typical_p: float = setting(
        1.0,
        Real(0.0, 1.0, open_low=True),
        "Only the tokens of the most typical surprise that together reach this mass.",
        aliases=("typ_p", "typical"),
        option=("--typical-p",),
    )
    typical_min_keep: int = setting(
        1, Whole(1), "So many are kept in any case, the nearest first.", option=("--typical-min-keep",)
    )

    name = "typical_p"
    place = 295
    places: ClassVar[Mapping[str, float]] = {"hf": 330, "llama.cpp": 302}

    def apply(self, rows: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
        logarithms, uncertain = rows.log_softmax(dim=-1), entropies(rows)
        for row, own, entropy in zip(rows, logarithms, uncertain.tolist(), strict=True):
            masses = own.exp().cpu().numpy()
            distances = (-own - entropy).abs().cpu().numpy()
            kept = distances <= self._border(masses, distances)
            if np.count_nonzero(kept) < self.typical_min_keep:
                kept[distances.argsort(kind="stable")[: self.typical_min_keep]] = True
            row.masked_fill_(torch.from_numpy(~kept).to(row.device), FORBIDDEN)
        return rows

    def _border(self, masses: Float32[np.ndarray, "n"], distances: Float32[np.ndarray, "n"]) -> float:
        """The distance of the token with which the mass is reached."""
        if len(masses) < WIDE:
            return _reached(masses, distances, self.typical_p)
        there = masses > 0  # what is forbidden is infinitely far
        farthest = float(distances[there].max())
        bins = np.minimum(distances[there] * (BINS / max(farthest, 1e-30)), BINS - 1).astype(np.int64)
        sums = np.bincount(bins, masses[there], BINS).cumsum()
        border = int(sums.searchsorted(self.typical_p))
        if border == BINS:
            return farthest
        inside = bins == border
        before = float(sums[border - 1]) if border else 0.0
        return _reached(masses[there][inside], distances[there][inside], self.typical_p, before)


def _reached(
    masses: Float32[np.ndarray, "n"], distances: Float32[np.ndarray, "n"], wanted: float, before: float = 0.0
) -> float:
    """The distance with which the mass of all that are nearer, and of `before`, first is `wanted`; the farthest where it never
    is."""
    order = distances.argsort(kind="stable")
    sums = before + masses[order].cumsum(dtype=np.float64)
    return float(distances[order[min(int(sums.searchsorted(wanted)), len(sums) - 1)]])
