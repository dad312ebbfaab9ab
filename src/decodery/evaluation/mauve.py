"""MAUVE: how near a set of texts is to another one, such as those that people wrote (Pillutla et al. 2021, arXiv 2102.01454).

Every text becomes the network's last hidden row of its last token. These rows of both sets are clustered together, and MAUVE is
the area under the curve that the divergences of both histograms from their mixtures draw. The library `mauve-text` of the
authors computes it; the rows come from a model of ours, so nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from decodery.errors import BadInput, MethodUnavailable
from decodery.models.forward import POST_NORM, Forward, Rows

if TYPE_CHECKING:
    from jaxtyping import Float

    from decodery.language_model import LanguageModel

SCALE = 5.0
"""By how much divergences are scaled before they are drawn as exp(-scale * divergence): the authors' choice."""


@dataclass(frozen=True)
class Mauve:
    """value: from 0 (nothing in common) to 1 (alike). smoothed: the same with half a text added to every cluster, which few
    texts bias less (MAUVE* of Pillutla et al. 2023). frontier_integral: from 0 (alike) to 1. clusters: how many."""

    value: float
    smoothed: float
    frontier_integral: float
    clusters: int


def features(
    lm: LanguageModel, texts: Sequence[str], longest: int = 256, at_once: int = 16
) -> Float[np.ndarray, "n hidden"]:
    """The row that leaves the network's final norm at the last token of each text, float32 [n, hidden].

    lm: whose rows they are; comparisons hold within one model alone. longest: tokens of a text that are looked at, from its
    beginning: cut all sets to one length, for longer texts are told apart by length. at_once: texts that share a pass. Raises
    MethodUnavailable where the model has no hidden rows, and BadInput where a text is empty.
    """
    if lm.network.hidden is None:
        raise MethodUnavailable(f"texts are compared by hidden rows, and {lm.network.name} has none.")
    read = [lm.tokenize(text)[:longest] if text else [] for text in texts]
    if not all(read):
        raise BadInput(f"text {read.index([]) + 1} of {len(read)} is empty; leave such texts out of both sets.")
    rows = []
    with lm.working():
        for start in range(0, len(read), at_once):
            asked = [
                Forward(lm.network.new_sequence(), tokens, logits=Rows.NONE, taps=(POST_NORM,))
                for tokens in read[start : start + at_once]
            ]
            rows += [scores.hidden[POST_NORM][-1].float().cpu().numpy() for scores in lm.network.run(asked)]
    return np.stack(rows)


def mauve(
    one: Float[np.ndarray, "n hidden"],
    other: Float[np.ndarray, "m hidden"],
    *,
    clusters: int | None = None,
    scale: float = SCALE,
    seed: int = 25,
) -> Mauve:
    """MAUVE of two sets of texts, given the features of each; symmetric but for rounding.

    clusters: None is a tenth of the smaller set. seed: of the clustering. Below a thousand texts of each the value depends on
    their number: compare only sets of equal size. Raises MethodUnavailable where the library is missing.
    """
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise MethodUnavailable(
            f"MAUVE needs {error.name}, which is not installed; install it with pip install 'decodery[mauve]'."
        ) from None
    found = compute_mauve(
        p_features=one,
        q_features=other,
        num_buckets="auto" if clusters is None else clusters,
        mauve_scaling_factor=scale,
        seed=seed,
    )
    return Mauve(float(found.mauve), float(found.mauve_star), float(found.frontier_integral), int(found.num_buckets))
