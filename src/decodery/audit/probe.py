"""What training leaves in hidden rows, learned on a copy of the model that is trained on texts that are surely no members.

Source: Liu et al., Probing Language Models for Pre-training Data Detection, arXiv 2406.01333; sizes of the repository of
arXiv 2406.17975.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from decodery.audit.evidence import AT_ONCE, Tell, silent
from decodery.audit.fine_tuning import FineTuning, fine_tuned
from decodery.audit.measures import auc
from decodery.errors import BadInput
from decodery.evaluation.intervals import Array

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

STEPS, RATE, DECAY = 1000, 1e-3, 0.1
"""Of the logistic regression: the repository's."""
FITTED = 0.7
"""Share of the auxiliary texts that regressions are fitted on; the others choose the layer."""
TUNING = FineTuning(epochs=10, rate=1e-4)
"""Of the copy."""


def probe_scores(
    lm: LanguageModel,
    texts: Sequence[str],
    strangers: Sequence[str],
    seed: int = 0,
    how: FineTuning = TUNING,
    tell: Tell = silent,
) -> Array:
    """How much each text's hidden row looks like that of a text that was trained on: [n], the logit of being one.

    strangers: at least 20 texts that are surely no members. A random half of them trains a copy; in each layer a regression
    tells the rows of their last tokens from those of the other half, and the layer that does so best on texts it was not
    fitted on scores the rows of `texts` in the model itself. Raises BadInput.
    """
    if len(strangers) < 20:
        raise BadInput(f"the probe learns from at least 20 texts that are no members, not {len(strangers)}.")
    draws = np.random.Generator(np.random.Philox(key=seed))
    order = draws.permutation(len(strangers))
    learned = [strangers[place] for place in order[: len(order) // 2]]
    copy = fine_tuned(lm, [lm.tokenize(text) for text in learned], how, tell)
    listed = [*learned, *(strangers[place] for place in order[len(order) // 2 :])]
    labels = torch.tensor([float(place < len(learned)) for place in range(len(listed))], dtype=torch.float64)
    split = draws.permutation(len(listed))
    fitted, held = split[: int(FITTED * len(split))], split[int(FITTED * len(split)) :]
    rows = _last_rows(copy, listed, range(lm.network.layers), tell)
    best: tuple[float, int, Tensor] | None = None
    for layer, found in rows.items():
        middle, scale = found[fitted].mean(0), found[fitted].std(0).clamp_min(1e-6)
        weights = _regression((found[fitted] - middle) / scale, labels[fitted])
        told = (((found[held] - middle) / scale) @ weights).numpy()
        area = float(auc(np.ones((1, len(held))), told, labels[held].numpy())[0])
        if best is None or area > best[0]:
            best = area, layer, weights / scale
    assert best is not None
    _, layer, weights = best
    # The copy's rows lie elsewhere as a whole, so only differences between texts count here.
    return np.asarray((_last_rows(lm, texts, [layer], tell)[layer] @ weights).numpy())


def _last_rows(lm: LanguageModel, texts: Sequence[str], layers: Sequence[int], tell: Tell) -> dict[int, Tensor]:
    """The hidden rows of the last tokens, layer -> [n, hidden] float64."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for start in range(0, len(texts), AT_ONCE):
        tell("hidden rows", start, len(texts))
        for scored in lm.score(list(texts[start : start + AT_ONCE]), taps=list(layers)):
            for layer, rows in scored.hidden.items():
                found[layer].append(rows[-1].double())
    return {layer: torch.stack(rows) for layer, rows in found.items()}


def _regression(rows: Tensor, labels: Tensor) -> Tensor:
    """The weights [hidden] of a logistic regression without a bias."""
    weights = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([weights], lr=RATE, weight_decay=DECAY)
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = torch.nn.functional.binary_cross_entropy_with_logits(rows @ weights, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return weights.detach()
