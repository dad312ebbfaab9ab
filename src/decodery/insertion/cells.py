"""The law of what is inserted next: one softmax over all open gaps and all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from decodery.errors import ScoresNotNumbers
from decodery.sampling.noise import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.law import Law
    from decodery.sampling.noise import Chance
    from decodery.sampling.steps import Step

SPREAD = 199
"""Steps of the law from this place on look at how mass is spread, those before at which token it is for."""
OWN = ("min_new_tokens",)
"""Steps that the method does itself: what ends a text is no token here."""


class GapCells:
    """The cells (gap, token) of a text, as one forward scores them.

    scores: [gaps, vocabulary] float32, raw, of the open gaps in the order in which their slots came; what is never inserted is
    at minus infinity. law: of the request. number: insertions so far.
    """

    def __init__(self, scores: Tensor, law: Law, number: int):
        self.law, self.number = law, number
        self._early = [step for step in law.steps if step.place < SPREAD and step.name not in OWN]
        self._late = [step for step in law.steps if step.place >= SPREAD]
        self.scores = self._applied(self._early, scores.float().clone())
        """[gaps, vocabulary], with what the settings say of tokens."""
        if not bool(self.scores.amax() > -float("inf")) or bool(self.scores.isnan().any()):
            raise ScoresNotNumbers(f"the scores of insertion {number + 1} are not numbers, or forbid every token")

    def _applied(self, steps: Sequence[Step], rows: Tensor) -> Tensor:
        # The law counts the tokens before a row; which ones they are it does not ask.
        prefix = self.law.prefix([0] * self.number)
        for step in steps:
            rows = step.apply(rows, [prefix] * len(rows))
        return rows

    def joint(self) -> Tensor:
        """Log probabilities [gaps * vocabulary] float64 of all cells, gap by gap; truncation is of the whole table."""
        flat = self._applied(self._late, self.scores.flatten()[None].clone())[0]
        return flat.double().log_softmax(-1)

    def gaps(self) -> Tensor:
        """Log probabilities [gaps] float64 of the gaps alone, under the temperature and without truncation."""
        tempered = [step for step in self._late if step.name == "temperature"]
        return self._applied(tempered, self.scores.clone()).double().logsumexp(-1).log_softmax(-1)

    def tokens(self, gap: int) -> Tensor:
        """Log probabilities [vocabulary] float64 of what is inserted, given the gap."""
        return self._applied(self._late, self.scores[gap][None].clone())[0].double().log_softmax(-1)

    def joint_choice(self, chance: Chance, position: int) -> tuple[int, int]:
        """A gap, by its place among the open ones, and a token, drawn together; greedily the highest cell, the first of
        equals."""
        vocabulary = self.scores.shape[1]
        law = self.joint()
        cell = _highest(law) if self.law.greedy else chance.choose(law.exp(), position, Stage.TARGET)
        return cell // vocabulary, cell % vocabulary

    def staged_choice(self, chance: Chance, position: int, most: int) -> tuple[int, int]:
        """A gap among the `most` likeliest ones, then a token for it; greedily the highest of each, the first of equals."""
        gaps = self.gaps()
        if self.law.greedy or most == 1:
            gap = _highest(gaps)
        else:
            order = gaps.sort(descending=True, stable=True).indices[:most].sort().values
            gap = int(order[chance.choose(gaps[order].exp(), position, Stage.ORDER)])
        return gap, self.token_choice(chance, position, gap)

    def token_choice(self, chance: Chance, position: int, gap: int) -> int:
        """A token for a gap."""
        tokens = self.tokens(gap)
        if self.law.greedy:
            return _highest(tokens)
        return chance.choose(tokens.exp(), position, Stage.TARGET)


def _highest(law: Tensor) -> int:
    """The first of the highest entries."""
    from decodery.sampling.top import likeliest

    return likeliest(law)
