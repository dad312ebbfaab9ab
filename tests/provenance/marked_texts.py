"""Texts with a mark, drawn from random laws without a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from decodery.sampling.chance import DrawnSample, Watermarked
from decodery.sampling.noise import Stage
from decodery.sampling.watermarks.keys import WatermarkKey


def laws(count: int, vocabulary: int, nats: float, seed: int) -> torch.Tensor:
    """So many laws [count, vocabulary] of about this entropy each."""
    scores = np.random.default_rng(seed).standard_normal((count, vocabulary))
    low, high = 0.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        found = torch.from_numpy(middle * scores).softmax(-1)
        entropy = float(torch.special.entr(found).sum(-1).mean())
        low, high = (middle, high) if entropy > nats else (low, middle)
    return torch.from_numpy(low * scores).softmax(-1)


def written(key: WatermarkKey, of: torch.Tensor, seed: int = 0) -> list[int]:
    """A text, token t from law t, as generation draws it."""
    text: list[int] = []
    chance = Watermarked(key).chance(DrawnSample(seed, 0, 1, text, 0))
    for place, law in enumerate(of):
        text.append(chance.choose(law, place, Stage.TARGET))
    return text


def unmarked(of: torch.Tensor, seed: int) -> list[int]:
    """A text drawn from the same laws by other noise."""
    uniform = np.random.default_rng((seed, 5)).random(len(of))
    return (of.double().cumsum(-1) < torch.from_numpy(uniform)[:, None]).sum(-1).clamp_max(of.shape[1] - 1).tolist()


def without(text: Sequence[int], share: float, seed: int) -> list[int]:
    """A text of which this share of the tokens is left out at random."""
    kept = np.random.default_rng((seed, 7)).permutation(len(text))[: round(len(text) * (1 - share))]
    return [text[place] for place in sorted(kept)]
