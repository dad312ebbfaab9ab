"""Verifiers for drafts that were drawn from known draft laws: speculative sampling on chains and trees."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from decodery.sampling.noise import Chance, Stage
from decodery.speculative.draft import Draft, Siblings
from decodery.speculative.verifiers.base import NodeByNode, TargetLaws, Verdict


def residual(p: Float[Tensor, "vocabulary"], q: Float[Tensor, "vocabulary"]) -> Float[Tensor, "vocabulary"]:
    """norm(max(p - q, 0)), or p where nothing is left (which only rounding can bring about). Both [vocabulary]."""
    rest = (p - q).clamp_(min=0)
    total = rest.sum()
    return rest / total if total > 0 else p


class ChainRejection:
    """Speculative sampling of a chain: accept x with probability min(1, p(x) / q(x)), else draw from the residual.

    Exact: the emitted tokens have the law of ancestral sampling from p. Source: Leviathan et al., arXiv 2211.17192,
    algorithm 1; Chen et al., arXiv 2302.01318, algorithm 2.
    """

    def verify(self, draft: Draft, target: TargetLaws, chance: Chance, position: int) -> Verdict:
        if draft.q is None or not draft.is_chain:
            raise ValueError("chain rejection needs a chain with draft probabilities")
        for node, token in enumerate(draft.tokens):
            p, q = target[node].exp().double(), draft.q[node - 1].double()
            if not chance.accept(float(p[token] / q[token]), position + node):
                last = chance.choose(residual(p, q), position + node, Stage.RESIDUAL)
                return Verdict(tuple(range(node)), last)
        depth = len(draft)
        bonus = chance.choose(target[depth].exp(), position + depth, Stage.TARGET, path=draft.tokens)
        return Verdict(tuple(range(depth)), bonus)


class TreeRejection(NodeByNode):
    """Recursive rejection over the children of a node, in the order in which they were drawn.

    A refused child takes its mass out of the law that the next one is judged by. Drawn with replacement, the draft law
    stays as it is; without replacement it loses the refused token and is renormalised. Exact for both. Source:
    SpecInfer, arXiv 2305.09781, multi-step speculative sampling; without replacement: arXiv 2402.14160 (RSD).
    """

    def check(self, draft: Draft) -> None:
        if draft.q is None:
            raise ValueError("tree rejection needs draft probabilities")
        if draft.siblings is Siblings.GREEDY:
            raise ValueError("tree rejection needs children that were drawn, and the greedy set's first ones were not")

    def judge(
        self, draft: Draft, node: int, drawn: Sequence[int], p: Tensor, chance: Chance, position: int
    ) -> tuple[int | None, int]:
        assert draft.q is not None
        q = draft.q[node].double()
        for order, child in enumerate(drawn):
            token = draft.tokens[child]
            if not q[token] > 0:
                raise ValueError(f"node {child} cannot have been drawn: its token {token} has no draft probability")
            if chance.accept(float(p[token] / q[token]), position, order):
                return child, token
            p = residual(p, q)
            if draft.siblings is Siblings.WITHOUT_REPLACEMENT:
                q = q.clone()
                q[token] = 0
                q = q / q.sum() if q.sum() > 0 else q
        return None, chance.choose(p, position, Stage.RESIDUAL)
