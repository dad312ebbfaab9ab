"""K-SEQ: several independent drafts, each tested against the target divided by a factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from decodery.sampling.noise import Chance, Stage
from decodery.speculative.draft import Draft, Siblings
from decodery.speculative.transport.attained import any_of, rho_star
from decodery.speculative.verifiers.base import NodeByNode


def kseq_residual(
    p: Float64[Tensor, "vocabulary"], q: Float64[Tensor, "vocabulary"], factor: float, count: int
) -> Float64[Tensor, "vocabulary"]:
    """Masses [vocabulary] of the token that is emitted where all `count` tests failed: p less what the tests let through.

    A factor that is valid makes none of them negative by more than rounding.
    """
    passed = torch.minimum(q, p / factor)
    beta = float(passed.sum())
    return p - passed * (any_of(beta, count) / beta) if beta > 0 else p


@dataclass(frozen=True)
class KSeq(NodeByNode):
    """Tests the drafts of a node one after the other, x with probability min(1, p(x) / (rho q(x))).

    The drafts of a node are those of the whole sequences that agree with what was accepted so far, a repeated token once
    for each of them, so rho and the residual are those of the number still alive. Exact for independent drafts, and with
    one draft plain speculative sampling. best_factor: divide by the smallest valid rho; otherwise by the number of drafts,
    which is always valid and accepts less. Source: Sun et al., arXiv 2310.15141, algorithms 1 (K-SEQ) and 2 (sequences).
    """

    best_factor: bool = True

    def check(self, draft: Draft) -> None:
        if len(draft) and draft.siblings is not Siblings.WITH_REPLACEMENT:
            raise ValueError("K-SEQ needs drafts that were drawn independently, with their draft probabilities")

    def judge(
        self, draft: Draft, node: int, drawn: Sequence[int], p: Tensor, chance: Chance, position: int
    ) -> tuple[int | None, int]:
        assert draft.q is not None
        p, q = p / p.sum(), draft.q[node].double()
        q = q / q.sum()
        factor = self.factor(p, q, len(drawn))
        for order, child in enumerate(drawn):
            token = draft.tokens[child]
            if chance.accept(float(p[token] / (factor * q[token])), position, order):
                return child, token
        rest = self.residual(p, q, factor, len(drawn)).clamp(min=0)
        # Nothing is left only by rounding, where every test passes for certain.
        rest = rest if float(rest.sum()) > 0 else p
        return None, chance.choose(rest, position, Stage.RESIDUAL)

    def factor(self, p: Tensor, q: Tensor, count: int) -> float:
        """What the target is divided by."""
        return rho_star(p.cpu(), q.cpu(), count) if self.best_factor else float(count)

    def residual(self, p: Tensor, q: Tensor, factor: float, count: int) -> Tensor:
        return kseq_residual(p, q, factor, count)
