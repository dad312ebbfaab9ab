"""Marks that go by the last tokens: what they add up to, and how likely that is by chance.

The first tokens of a text, whose context the prompt holds in part, are left out, and so is what stands there a second time:
what is counted is independent for every text that does not depend on the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from decodery.errors import Refused
from decodery.sampling.chance.keyed import Keyed
from decodery.sampling.noise import Noise, Stage
from decodery.sampling.watermarks.keys import ContextKey, GreenKey, TournamentKey, WatermarkKey
from decodery.sampling.watermarks.numbers import seed_of, words

if TYPE_CHECKING:
    from jaxtyping import Float64

FIRST, LAST = 10.0, 1.0
"""Weights of the first and the last layer of a tournament, falling evenly between, as published."""


@dataclass(frozen=True)
class Found:
    """What was added up. counted: tokens; resamples: with fresh bits; 0: the law is known."""

    value: float
    p_value: float
    counted: int
    resamples: int = 0


def look_up(tokens: Sequence[int], key: WatermarkKey, resamples: int, seed: int) -> Found:
    """Of a gumbel key the sum of -log(1 - number), Gamma's law by chance; of a kgw key the share of green tokens, whose number
    is binomial; of a synthid key the weighted mean of the bits, beside fresh ones.

    Raises Refused where the text has no token with a whole context.
    """
    assert isinstance(key, ContextKey | GreenKey | TournamentKey)
    if len(tokens) <= key.window:
        raise Refused(
            f"the text has {len(tokens)} tokens, and the key goes by the last {key.window}: give at least {key.window + 1}."
        )
    pairs = [(tuple(tokens[place - key.window : place]), tokens[place]) for place in range(key.window, len(tokens))]
    if isinstance(key, ContextKey):
        once = list(dict.fromkeys(pairs))
        value = float(sum(-np.log(1 - _number(key, context, token)) for context, token in once))
        return Found(value, float(stats.gamma.sf(value, len(once))), len(once))
    if isinstance(key, GreenKey):
        once = list(dict.fromkeys(pairs))
        greens = sum(bool(key.green(context)[token]) for context, token in once)
        share = key.greens / key.vocabulary
        return Found(greens / len(once), float(stats.binom.sf(greens - 1, len(once), share)), len(once))
    first: dict[tuple[int, ...], int] = {}
    for context, token in pairs:
        first.setdefault(context, token)  # where a context comes again, no tournament was held
    seeds = np.array([seed_of(key.key, key.scheme, *context) for context in first], np.uint64)
    bits = words(seeds, np.array(list(first.values()), np.uint64))
    won = (bits[:, None] >> np.arange(key.layers, dtype=np.uint64)) & np.uint64(1)
    weights = np.linspace(FIRST, LAST, key.layers)
    value = _mean(won.sum(0).astype(np.float64), weights, len(first))
    draws = np.random.Generator(np.random.Philox(key=Noise(seed).key(0, Stage.ORDER, ("fresh bits",))))
    counts = draws.binomial(len(first), 0.5, (resamples, key.layers)).astype(np.float64)
    above = sum(_mean(row, weights, len(first)) >= value for row in counts)
    return Found(value, (1 + int(above)) / (resamples + 1), len(first), resamples)


def _mean(counts: Float64[np.ndarray, "layers"], weights: Float64[np.ndarray, "layers"], tokens: int) -> float:
    return float(counts @ weights / (weights.sum() * tokens))


def _number(key: ContextKey, context: tuple[int, ...], token: int) -> float:
    """The number in [0, 1) that the race after a context has for a token: one of the vector of `Keyed`, by itself."""
    source = Keyed(key.key, key.window)
    position, index = source.address(context)
    bits = np.random.Philox(key=source.noise().key(position, Stage.TARGET, index))
    bits.advance(token // 4)
    return float(np.random.Generator(bits).random(token % 4 + 1)[-1])
