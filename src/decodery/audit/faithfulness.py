"""Whether weights say what a model really looks at: Soft-NS (sufficiency) and Soft-NC (comprehensiveness).

Each number of a token's embedding is kept with the token's weight as its chance, else 0: what was said to matter should be
enough, and without it the law should be another one.

Source: Zhao and Aletras, Incorporating Attribution Importance for Improving Faithfulness Metrics, ACL 2023, arXiv 2305.10496,
and the repository of arXiv 2402.00794, whose distance is √2 times the squared Hellinger distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from decodery.engine.asking import Asking
from decodery.evaluation.intervals import Array
from decodery.models.forward import Forward, Rows

if TYPE_CHECKING:
    from decodery.models.scorer import Scorer

DRAWS = 10
"""Masks that are drawn for a token, for one is noisy."""
LEAST = 1e-3
"""Distance of the law after embeddings of zeros below which both metrics say nothing."""


@dataclass(frozen=True)
class Faithfulness:
    """soft_ns, soft_nc: at least 0, higher is better; means over the masks drawn."""

    soft_ns: float
    soft_nc: float


def distance(one: Tensor, other: Tensor) -> float:
    """Of two laws [vocabulary]: the sum of (√p − √q)², over √2. From 0 to √2."""
    return float((one.sqrt() - other.sqrt()).square().sum() / 2**0.5)


def faithfulness(
    network: Scorer, context: Sequence[int], weights: Sequence[Array], chance: np.random.Generator, draws: int = DRAWS
) -> Asking[list[Faithfulness] | None]:
    """A task for `lm.run`: the metrics of several weightings [n] of one context, under the same draws.

    None where the law without any embedding is that with all of them. Raises ValueError where the network takes no embeddings.
    """
    rows = network.embed(torch.tensor(list(context)))
    noise = torch.from_numpy(chance.random((draws, *rows.shape))).to(rows.device)
    asked = [rows, torch.zeros_like(rows)]
    for each in weights:
        keep = torch.from_numpy(np.asarray(each, dtype=np.float64))[:, None].to(rows.device)
        asked += [rows * (noise[draw] < share) for draw in range(draws) for share in (keep, 1 - keep)]
    answers = yield tuple(Forward(network.new_sequence(), each, logits=Rows.LAST) for each in asked)
    law, nothing, *others = [scores.logits[0].double().softmax(0) for scores in answers]
    room = distance(nothing, law)  # 1 less the sufficiency of nothing
    if room < LEAST:
        return None
    found = []
    for place in range(len(weights)):
        part = others[2 * draws * place : 2 * draws * (place + 1)]
        enough = [max(0.0, room - distance(each, law)) / room for each in part[::2]]
        without = [distance(each, law) / room for each in part[1::2]]
        found.append(Faithfulness(float(np.mean(enough)), float(np.mean(without))))
    return found
