"""What steps that forbid tokens share, and how few tokens are found that they leave: on a CPU numpy and thresholds take a
fraction of what `sort`, `topk`, `where` and `nonzero` do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decodery._lazy import np, torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

FORBIDDEN = float("-inf")
WIDE = 4096
"""From so many tokens on it pays to look for few of them first."""


def on_cpu(scores: Tensor) -> bool:
    """Whether numpy can work on these scores."""
    return scores.is_cpu and scores.dtype == torch.float32


def falling(rows: Float[Tensor, "n vocabulary"]) -> Float[Tensor, "n vocabulary"]:
    """The values of each row from high to low. `sort` tells as well from where each comes."""
    if not on_cpu(rows):
        return rows.sort(dim=-1, descending=True).values
    values = -rows.detach().numpy()
    values.sort(axis=-1)
    return torch.from_numpy(np.negative(values, out=values))


def kth_highest(rows: Float[Tensor, "n vocabulary"], k: int) -> Float[Tensor, "n"]:
    """The k-th highest value of each row."""
    if not on_cpu(rows):
        return rows.topk(k).values[:, -1]
    place = rows.shape[1] - k
    return torch.from_numpy(np.partition(rows.detach().numpy(), place)[:, place])


def forbid_below(rows: Float[Tensor, "n vocabulary"], least: Float[Tensor, "n"]) -> Float[Tensor, "n vocabulary"]:
    """Forbid, in place, what is below the least score of each row."""
    if not on_cpu(rows):
        return rows.masked_fill_(rows < least[:, None], FORBIDDEN)
    for row, score in zip(rows, least.tolist(), strict=True):
        threshold(row, score)
    return rows


def threshold(row: Float[Tensor, "vocabulary"], least: float) -> None:
    """Forbid, in place, what is below the least score of a row of float32."""
    torch.threshold_(row, float(np.nextafter(np.float32(least), np.float32(FORBIDDEN))), FORBIDDEN)


def highest(row: Float[Tensor, "vocabulary"], k: int) -> Int64[Tensor, "k"]:
    """Indices of the k highest scores of a row, highest first, the lowest among equals."""
    k = min(k, row.shape[0])
    ids = (row >= kth_highest(row[None], k)[0]).nonzero()[:, 0]
    return ids[row[ids].argsort(descending=True, stable=True)][:k]


def keep_highest(row: Float[Tensor, "vocabulary"], count: int) -> None:
    """Forbid, in place, all but the `count` highest scores of a row, the lower ids among equals."""
    if count >= row.shape[0]:
        return
    least = kth_highest(row[None], count)[0]
    equal = (row == least).nonzero()[:, 0]
    room = count - int((row > least).sum())
    row[row < least] = FORBIDDEN
    row[equal[room:]] = FORBIDDEN


def few(values: Float[Tensor, "n"], nothing: float) -> Int64[np.ndarray, "m"] | None:
    """Where values, on a CPU, are not `nothing`; None where that is everywhere, nowhere, or in more than an eighth of the
    places."""
    there = values.numpy() != nothing
    return np.flatnonzero(there) if 0 < np.count_nonzero(there) * 8 <= len(there) else None
