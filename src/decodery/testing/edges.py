"""Requests at the edges of the unit interval, where strict and lax comparisons of a random number differ."""

from __future__ import annotations

import torch
from torch import Tensor

from decodery.engine.method import Method
from decodery.engine.settings import Settings
from decodery.sampling.law import Law
from decodery.sampling.noise import Index, Noise, Stage
from decodery.testing.hosts import scripted_language_model
from decodery.testing.outputs import finished, new_request
from decodery.testing.scorers import Prefix, TabularScorer

LARGEST = 1.0 - 2.0**-53
"""The largest number that `Noise` draws."""
VOCABULARY = 5
PROMPT = (0, 1, 2, 0, 1)


class EdgeNoise(Noise):
    """Noise whose every number is the same: 0, or the largest below 1. What must never happen, does not even here."""

    def __init__(self, value: float):
        super().__init__(0)
        self.value = value

    def uniform(self, position: int, stage: Stage, index: Index = 0) -> float:
        return self.value

    def uniforms(self, count: int, position: int, stage: Stage, index: Index = 0) -> Tensor:
        return torch.full((count,), self.value, dtype=torch.float64)


def impossible_tokens(method: str | Method, layers: int = 3) -> tuple[int, int]:
    """How many tokens a method commits that have probability 0 under the processed law, and how many it commits at all,
    where every random number is 0 or the largest below 1.

    The law forbids the first and the last token, which a draw at either end of the unit interval hits first, while the
    draft model allows them.
    """

    def forbidding(prefix: Prefix) -> list[float]:
        law = TabularScorer(VOCABULARY, order=None, seed=len(prefix)).law(prefix)
        law[0] = law[VOCABULARY - 1] = 0
        masses: list[float] = law.tolist()
        return masses

    scorer = TabularScorer(VOCABULARY, order=None, given=forbidding, layers=layers)
    scorer.early = drafter = scorer.blurred()
    lm = scripted_language_model(scorer, drafter=drafter)
    committed = impossible = 0
    for number in (0.0, LARGEST):
        for settings in (
            Settings(temperature=1.0, max_new_tokens=8, seed=0),
            Settings(temperature=0.7, top_k=2, max_new_tokens=8, seed=0),
        ):
            request, chosen = new_request(lm, method, PROMPT, settings)
            request.noise = EdgeNoise(number)
            tokens = finished(request, chosen).new_tokens
            law = Law(settings, PROMPT)
            for place, token in enumerate(tokens):
                row = scorer.score([(*PROMPT, *tokens[:place])], True)[0]
                committed += 1
                impossible += float(law.log_probabilities(row, tokens[:place])[token]) == float("-inf")
    return impossible, committed
