"""Verifiers that accept as much as their draft set allows: of the greedy set in closed form, of any set by linear program."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decodery.sampling.noise import Chance, Stage
from decodery.speculative.draft import Draft, Siblings
from decodery.speculative.transport.plans import best_coupling
from decodery.speculative.verifiers.base import NodeByNode
from decodery.speculative.verifiers.rejection import residual

LARGEST_VOCABULARY = 16
"""Vocabulary up to which the linear program is worth solving at every node; its size grows with the sets of drafts."""


class GreedySetMatch(NodeByNode):
    """Judges the greedy set: the likeliest tokens of q, and one draw from the rest, q'.

    The draw is tested as in speculative sampling with draft law q'. A replacement that falls on one of the likeliest tokens
    is a drafted token all the same. Exact, and no verifier accepts more of this set. Source: Hu et al., arXiv 2502.18779,
    the section on greedy draft sampling.
    """

    def check(self, draft: Draft) -> None:
        if len(draft) and draft.siblings is not Siblings.GREEDY:
            raise ValueError("this verifier judges the greedy set: the likeliest tokens and one drawn from the rest")

    def judge(
        self, draft: Draft, node: int, drawn: Sequence[int], p: Tensor, chance: Chance, position: int
    ) -> tuple[int | None, int]:
        # Where the likeliest tokens are all there are, the last of them was certain to be drawn from what is left.
        *top, last = drawn
        token, rest = draft.tokens[last], self.rest(draft, node)
        if chance.accept(float(p[token] / rest[token]), position):
            return last, token
        token = chance.choose(residual(p, rest), position, Stage.RESIDUAL)
        return next((child for child in top if draft.tokens[child] == token), None), token

    def rest(self, draft: Draft, node: int) -> Tensor:
        """The law q' [vocabulary] that the last child was drawn from."""
        assert draft.q is not None
        law = draft.q[node].double().clone()
        law[[draft.tokens[child] for child in draft.children[node][:-1]]] = 0
        return law / law.sum()


class TransportPlan(NodeByNode):
    """Judges each node by the best coupling of its set of drafts with the target, found by linear programming.

    Exact, and no verifier accepts more. For small vocabularies: the program has a row for every set of drafts. How many
    drafts a node has must not depend on what was drawn, as it does in stochastic beam search. Source: the transport
    problem of Sun et al., arXiv 2310.15141, section 3, over sets, as order and repeats tell nothing of the target.
    """

    def check(self, draft: Draft) -> None:
        if len(draft) and draft.q is None:
            raise ValueError("a transport plan needs draft probabilities")

    def judge(
        self, draft: Draft, node: int, drawn: Sequence[int], p: Tensor, chance: Chance, position: int
    ) -> tuple[int | None, int]:
        assert draft.q is not None
        plan = best_coupling(p.cpu().numpy(), draft.q[node].double().cpu().numpy(), len(drawn), draft.siblings)
        held = {draft.tokens[child]: child for child in drawn}
        tokens = frozenset(held)
        taken = torch.from_numpy(plan.accepted[tokens])
        refused = max(plan.masses[tokens] - float(taken.sum()), 0.0)
        choice = chance.choose(torch.cat([taken, taken.new_tensor([refused])]), position, Stage.ACCEPT)
        if choice < len(taken):
            return held[choice], choice
        rest = torch.from_numpy(plan.residual)
        rest = rest if float(rest.sum()) > 0 else p
        return None, chance.choose(rest, position, Stage.RESIDUAL)
