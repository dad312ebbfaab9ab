"""The k highest of many scores, faster than a full selection."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

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
    groups = -(-width // GROUP)
    if groups * GROUP != width:
        scores = torch.nn.functional.pad(scores, (0, groups * GROUP - width), value=float("-inf"))
    grouped = scores.view(rows, groups, GROUP)
    best = grouped.amax(dim=-1).topk(k, dim=-1).indices
    inner = grouped.gather(1, best[..., None].expand(rows, k, GROUP)).reshape(rows, k * GROUP)
    place = inner.topk(k, dim=-1).indices
    return best.gather(1, place // GROUP) * GROUP + place % GROUP
