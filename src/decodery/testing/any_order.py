"""Any-order models whose laws are known, and a tiny random network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Listing
from typing import Any

import torch
from torch import Tensor

from decodery.models.forward import Forward, Scores, Slots
from decodery.models.masked_diffusion import MaskedDiffusion
from decodery.models.scorer import Scorer
from decodery.models.sequence import NothingKept, Sequence
from decodery.testing.hosts import LetterTokenizer, SmallLanguageModel


class TabularOrders(Scorer):
    """Gives the exact law of any position of an explicit joint law, given the positions that its row sees, read off the cache.

    joint: weights [vocabulary] * length, not negative, with a positive sum. start: the position of the first of them; earlier
    ones are a prompt, which says nothing. The mask is the token after the vocabulary.
    """

    def __init__(self, joint: Tensor, start: int = 2, name: str = "orders"):
        self.joint, self.start, self.name, self.layers = joint.double() / joint.double().sum(), start, name, 3
        self.mask = joint.shape[0]
        self.vocabulary, self.context = self.mask + 1, start + joint.dim()
        self.masked = MaskedDiffusion(self.mask, canvas=joint.dim(), any_order=True)

    @classmethod
    def random(cls, length: int = 3, vocabulary: int = 3, seed: int = 0, start: int = 2) -> TabularOrders:
        """A joint of independent exponential weights: nothing about it is a product."""
        uniform = torch.rand([vocabulary] * length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return cls(-uniform.clamp_min(1e-12).log(), start)

    def new_sequence(self) -> Sequence:
        return Sequence(self, NothingKept())

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        answers = []
        for forward in forwards:
            sequence, before = forward.sequence, forward.sequence.length
            sequence.write(forward.written_slots(), [int(token) for token in forward.tokens], forward.row_positions())
            visible = forward.visible()
            rows = [self._law(sequence, before + row, visible[row].tolist()) for row in forward.logit_rows()]
            if forward.slots is Slots.NOWHERE:
                sequence.truncate(before)
            answers.append(Scores(torch.stack(rows)))
        return answers

    def law(self) -> dict[tuple[int, ...], float]:
        """The joint law as outcomes with their probabilities."""
        return {
            outcome: float(self.joint[outcome])
            for outcome in itertools.product(range(self.mask), repeat=self.joint.dim())
        }

    def _law(self, sequence: Sequence, own: int, visible: list[bool]) -> Tensor:
        """Raw scores of a query. Raises AssertionError where it sees what no query may see."""
        seen: dict[int, int] = {}
        for column, there in enumerate(visible):
            if there and column != own:
                position, token = sequence.positions[column], sequence.tokens[column]
                assert token != self.mask, "a query sees another one"
                assert position not in seen, "a query sees two rows of one position"
                seen[position] = token
        assert sequence.tokens[own] == self.mask, "a row that scores is no query"
        assert visible[own], "a query does not see itself"
        place = sequence.positions[own]
        assert place not in seen, "a query sees the token of its own position"
        free = self.start + torch.arange(self.joint.dim())
        left = self.joint[tuple(seen.get(int(position), slice(None)) for position in free)]
        axis = sum(int(position) not in seen for position in free[free < place])
        others = [other for other in range(left.dim()) if other != axis]
        marginal = left.sum(others) if others else left
        # The mask's own score is high: whoever forgets to ban it, draws it.
        return torch.nn.functional.pad((marginal / marginal.sum()).log().float(), (0, 1), value=50.0)


def any_order_language_model(scorer: TabularOrders, *, stop_ids: Listing[int] = ()) -> SmallLanguageModel:
    """A language model over a scorer of any order; its tokens are letters."""
    return SmallLanguageModel(scorer, LetterTokenizer(scorer.vocabulary), stop_ids, diffusion=scorer.masked)


def toy_any_order_model(seed: int = 0, *, sharpness: float = 1.0, **more: Any) -> SmallLanguageModel:
    """A tiny random Llama with letters as tokens and the last one as mask. sharpness: a factor of its scores. more: see
    `toy_diffusion_model`."""
    from decodery.testing.denoisers import toy_diffusion_model

    lm = toy_diffusion_model(seed, any_order=True, **more)
    network: Any = lm.network
    network.model.lm_head.weight.data *= sharpness
    return lm
