"""How surprising a text is to a model: whether it could carry a mark at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from decodery.models.forward import Forward

if TYPE_CHECKING:
    from jaxtyping import Float64

    from decodery.engine.asking import Asking
    from decodery.language_model import LanguageModel

TEMPERATURES = (0.02, 0.05, *np.arange(0.1, 1.05, 0.1).round(1).tolist())
"""At which a text may have been drawn; the first stands for greedy decoding."""
AT_ONCE = 64
"""Rows of scores at a time."""


def probabilities_of(
    lm: LanguageModel, tokens: Sequence[int], prompt: Sequence[int] = ()
) -> tuple[Float64[np.ndarray, "m"], float]:
    """The probabilities of a text's tokens, at the temperature at which the whole is likeliest; and that temperature.

    prompt: what stood before the text, where it is known; otherwise the first token counts as certain. Greedy text has a
    temperature of nearly 0 and probabilities of nearly 1: none of it was drawn.
    """
    known = [*prompt, *tokens]
    start = max(len(prompt), 1)

    def read() -> Asking[Float64[np.ndarray, "m temperatures"]]:
        sequence, found = lm.network.new_sequence(), []
        for first in range(0, len(known) - 1, AT_ONCE):
            chunk = known[first : min(first + AT_ONCE, len(known) - 1)]
            scores = yield Forward(sequence, chunk)
            wanted = torch.tensor(known[first + 1 : first + 1 + len(chunk)], device=scores.logits.device)[:, None]
            rows = scores.logits.float()
            laws = [(rows / one).log_softmax(1).gather(1, wanted)[:, 0].double().cpu() for one in TEMPERATURES]
            found.append(torch.stack(laws, 1).numpy())
        return np.concatenate(found)[start - 1 :] if found else np.zeros((0, len(TEMPERATURES)))

    logarithms = lm.run(read())
    best = int(logarithms.sum(0).argmax()) if len(logarithms) else len(TEMPERATURES) - 1
    likely = np.exp(np.minimum(logarithms[:, best], 0.0)).clip(1e-300)
    return np.concatenate([np.ones(len(tokens) - len(likely)), likely]), TEMPERATURES[best]
