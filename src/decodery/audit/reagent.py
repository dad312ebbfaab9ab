"""ReAGent: how much each token of a context matters for the token that follows, by forwards alone.

Random subsets of the context are replaced by plausible other tokens. Where the target's probability falls, the replaced
tokens rise and the others sink; again and again, until the tokens that stand highest bring the target back with all others
replaced.

Source: Zhao and Shan, ReAGent, ReLM at AAAI 2024, arXiv 2402.00794, and its repository for the order of update and test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from decodery.audit.replacers import Ids, Replacer
from decodery.engine.asking import Asking
from decodery.errors import BadInput
from decodery.evaluation.intervals import Array
from decodery.models.forward import Forward, Rows

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.models.scorer import Scorer

EDGE = 1e-6
"""Nearest that a share may come to 0 or 1 before its logit is taken, which is infinite there."""


@dataclass(frozen=True)
class ReagentSettings:
    """replaced: share of the context replaced at random in a step. tolerance: a chain stops where the target is among so many
    likeliest tokens; 0: never. kept: share of the context that then stays, at least `least` tokens. steps: at most. chains:
    independent ones, whose mean is taken. votes: chains among whose highest tokens one must be to belong to the rationale."""

    replaced: float = 0.3
    tolerance: int = 3
    kept: float = 0.3
    least: int = 3
    steps: int = 300
    chains: int = 5
    votes: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("replaced", "kept"):
            if not 0 < getattr(self, name) <= 1:
                raise BadInput(f"{name} is a share above 0 and at most 1, not {getattr(self, name)}.")
        for name in ("least", "steps", "chains", "votes"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.tolerance < 0:
            raise BadInput(f"tolerance must not be negative, not {self.tolerance}.")


@dataclass(frozen=True)
class Importance:
    """weights: [n], not negative, together 1. converged: whether a chain stopped; where none did, weights are the mean over
    all chains. rationale: places among the highest tokens of enough chains. steps: of the slowest chain. forwards: of the
    network, a batch counting once, without the replacer's. chains: [chains, n], each one's weights. stopped: [chains] bool.
    changed: how many tokens were really replaced by others."""

    weights: Array
    converged: bool
    rationale: tuple[int, ...]
    steps: int
    forwards: int
    chains: Array
    stopped: Array
    changed: int


def reagent(
    network: Scorer, context: Sequence[int], target: int, replacer: Replacer, settings: ReagentSettings | None = None
) -> Asking[Importance]:
    """A task for `lm.run`: the importance of each token of a context for the target that follows it.

    context: at least two token ids; the first one is never replaced. Raises BadInput.
    """
    told = settings or ReagentSettings()
    tokens, count = np.array(context, dtype=np.int64), len(context)
    if count < 2:
        raise BadInput("a context needs at least two tokens, for the first one is never replaced.")
    if not 0 <= target < network.vocabulary:
        raise BadInput(f"the target {target} is no token of {network.name}, which has {network.vocabulary}.")
    draw = yield from replacer.reading(network, context)
    chance = np.random.Generator(np.random.Philox(key=told.seed))
    scores = yield Forward(network.new_sequence(), list(context), logits=Rows.LAST)
    before, forwards = _probability(scores.logits[0], target), 1
    state = chance.random((told.chains, count))
    stopped, changed, step = np.zeros(told.chains, dtype=bool), 0, 0
    kept = min(count, max(told.least, math.ceil(told.kept * count)))
    while step < told.steps and not stopped.all():
        running = np.flatnonzero(~stopped)
        mask = chance.random((told.chains, count)) < told.replaced
        mask[:, 0] = False
        replaced = np.where(mask, draw(told.chains, chance), tokens)
        changed += int((replaced != tokens)[running].sum())
        rows = yield from _read(network, replaced[running])
        fall = before - np.array([_probability(row, target) for row in rows])
        signed = np.where(mask[running], fall[:, None], -fall[:, None])
        share = np.clip(0.5 + 0.5 * signed, EDGE, 1 - EDGE)
        state[running] += np.log(share / (1 - share))
        step, forwards = step + 1, forwards + 1
        if told.tolerance:
            highest = _highest(state, kept)
            highest[:, 0] = True
            bare = np.where(highest, tokens, draw(told.chains, chance))
            rows = yield from _read(network, bare[running])
            stopped[running] = [_rank(row, target) < told.tolerance for row in rows]
            forwards += 1
    weights = np.exp(state - state.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    votes = _highest(state, kept).sum(0)
    return Importance(
        weights=weights[stopped].mean(0) if stopped.any() else weights.mean(0),
        converged=bool(stopped.any()),
        rationale=tuple(np.flatnonzero(votes >= told.votes).tolist()),
        steps=step,
        forwards=forwards,
        chains=weights,
        stopped=stopped,
        changed=changed,
    )


def _read(network: Scorer, contexts: Ids) -> Asking[list[Tensor]]:
    """The raw scores [vocabulary] after each context, in one pass."""
    answers = yield tuple(Forward(network.new_sequence(), row.tolist(), logits=Rows.LAST) for row in contexts)
    return [scores.logits[0] for scores in answers]


def _probability(row: Tensor, target: int) -> float:
    return float(row.double().log_softmax(0)[target].exp())


def _rank(row: Tensor, target: int) -> int:
    """How many tokens are likelier; of equals the lowest ids are."""
    return int((row > row[target]).sum() + (row[:target] == row[target]).sum())


def _highest(state: Array, count: int) -> Ids:
    """Which places of each chain are among its highest, [chains, n] bool."""
    order = np.argsort(-state, axis=1, kind="stable")[:, :count]
    found = np.zeros(state.shape, dtype=bool)
    np.put_along_axis(found, order, True, axis=1)
    return found
