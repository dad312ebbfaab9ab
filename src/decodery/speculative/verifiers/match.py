"""Verifiers for drafts without draft probabilities: the target chooses, the draft is followed while it agrees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from decodery.sampling.noise import Chance, Stage
from decodery.sampling.top import likeliest
from decodery.speculative.draft import ROOT, Draft
from decodery.speculative.verifiers.base import TargetLaws, Verdict


class GreedyMatch:
    """Follow the child that carries the target's likeliest token (lowest id among equals). Exact for greedy decoding.

    Only the order of each row matters: raw or processed scores serve as well as log probabilities.
    """

    def verify(self, draft: Draft, target: TargetLaws, chance: Chance, position: int) -> Verdict:
        own: Callable[[int], int] | None = getattr(target, "likeliest", None)
        if own is not None:
            return _follow(draft, lambda node, path: own(node + 1))
        return _follow(draft, lambda node, path: likeliest(target[node + 1]))


class SampleThenMatch:
    """Draw the target's token and follow the child that carries it.

    Exact at any temperature, and no verifier accepts more of a deterministic draft: a node's acceptance is the target's
    mass on its children. The draw of a position has the address that plain sampling uses, so the output is even the
    same token by token. Source: SpecInfer, arXiv 2305.09781, naive sampling; the argument for optimality is ours.
    """

    def verify(self, draft: Draft, target: TargetLaws, chance: Chance, position: int) -> Verdict:
        own: Callable[[int], Tensor] | None = getattr(target, "probabilities", None)
        law = own if own is not None else lambda row: target[row].exp()
        return _follow(
            draft,
            lambda node, path: chance.choose(law(node + 1), position + len(path), Stage.TARGET, path=path),
        )


def _follow(draft: Draft, choose: Callable[[int, Sequence[int]], int]) -> Verdict:
    """choose: (node, tokens down to it) -> the token that the target takes after the node."""
    node = ROOT
    path: list[int] = []
    tokens: list[int] = []
    while True:
        token = choose(node, tokens)
        child = next((c for c in draft.children.get(node, ()) if draft.tokens[c] == token), None)
        if child is None:
            return Verdict(tuple(path), token)
        path.append(child)
        tokens.append(token)
        node = child
