"""The k highest of many scores, faster than a full selection."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from decodery.sampling.forbidding import on_cpu

GROUP = 128


def top_ids(scores: Float[Tensor, "n vocabulary"], k: int) -> Int64[Tensor, "n k"]:
    """Indices [n, k] of the k highest of each row of scores [n, vocabulary], highest first.

    The k highest lie in the k groups with the highest maxima, so a pass for maxima and a selection among k groups
    suffice: on two CPU cores several times faster than `topk` over a vocabulary of 49152.
    """
    rows, width = scores.shape
    k = min(k, width)
    if width < 4 * k * GROUP:
        return scores.topk(k, dim=-1).indices
    groups = width // GROUP
    whole = groups * GROUP
    grouped = scores[:, :whole].view(rows, groups, GROUP)
    best = grouped.amax(dim=-1).topk(k, dim=-1).indices
    inner = grouped.gather(1, best[..., None].expand(rows, k, GROUP)).reshape(rows, k * GROUP)
    ids = (best[..., None] * GROUP + torch.arange(GROUP, device=scores.device)).reshape(rows, k * GROUP)
    if whole < width:  # what is left over of the last group always takes part
        inner = torch.cat([inner, scores[:, whole:]], dim=1)
        ids = torch.cat([ids, torch.arange(whole, width, device=scores.device).expand(rows, -1)], dim=1)
    return ids.gather(1, inner.topk(k, dim=-1).indices)


def likeliest(row: Float[Tensor, "vocabulary"]) -> int:
    """Index of the highest score, the lowest among equals; on a CPU several times faster than `argmax`."""
    if on_cpu(row):
        return int(row.detach().numpy().argmax())
    return int(row.argmax())
