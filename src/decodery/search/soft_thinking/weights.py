"""The weights of a mixture of tokens: those of the law, drawn around it, or pushed towards one of them.

Wu et al., LLMs are Single-threaded Reasoners, 2025, arXiv 2508.03440; the plain mixture: Zhang et al., Soft Thinking, 2025,
arXiv 2505.15778. All numbers are float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from decodery._lazy import np, torch
from decodery.sampling.noise import gumbel

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64
    from torch import Tensor

SUPPORT = 1e-7
"""A token of less probability has no part in a Dirichlet draw: a Gamma law needs a shape above 0."""


def dirichlet(law: Float[Tensor, "n"], concentration: float, key: int) -> Float64[Tensor, "n"]:
    """Weights [n] of the Dirichlet law around `law` [n], normalised on its support: mean the law, variance
    law * (1 - law) / (concentration + 1). key: what the draw follows from."""
    held = law.double().cpu() > SUPPORT
    shares = law.double().cpu()[held]
    shares = shares / shares.sum()
    generator = np.random.Generator(np.random.Philox(key=key))
    drawn = torch.from_numpy(generator.standard_gamma(concentration * shares.numpy()))
    # Of shapes so small that every number is below the least float one token is all there is.
    if not float(drawn.sum()) > 0:
        drawn[int(generator.choice(len(shares), p=shares.numpy()))] = 1.0
    weights = torch.zeros(len(law), dtype=torch.float64)
    weights[held] = drawn / drawn.sum()
    return weights


def heaviest(weights: Float[Tensor, "n"], count: int) -> tuple[Int64[Tensor, "k"], Float64[Tensor, "k"]]:
    """The ids and weights of the `count` heaviest tokens, the heaviest first and the lowest id among equals, normalised; fewer
    where others have no weight."""
    shares, ids = weights.double().cpu().sort(descending=True, stable=True)
    kept = min(count, int((shares > 0).sum()))
    return ids[:kept], shares[:kept] / shares[:kept].sum()


def gumbel_softmax(
    weights: Float64[Tensor, "k"], numbers: Float64[Tensor, "k"], temperature: float
) -> tuple[Int64[Tensor, "k"], Float64[Tensor, "k"]]:
    """The order [k] in which the perturbed log weights stand, the highest first, and the perturbed weights [k] in that order.

    numbers: in [0, 1), one for each token. temperature: of the softmax over log weight plus Gumbel noise; 0 leaves the first
    alone. The first is a draw from `weights` at every temperature.
    """
    scores = weights.log() + gumbel(numbers)
    order = scores.argsort(descending=True, stable=True)
    if temperature == 0:
        one = torch.zeros_like(weights)
        one[0] = 1.0
        return order, one
    return order, (scores[order] / temperature).softmax(-1)
