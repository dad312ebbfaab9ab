"""The laws of masked positions, as one forward gives them: what an unmasking rule looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.errors import ScoresNotNumbers

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.sampling.law import Law
    from decodery.sampling.noise import Chance

FIXED = 0
"""Index of draws whose noise is the same at every step; a draw of step s has index s + 1."""
RANKS = ("entropy", "margin", "max_probability")
"""How positions are ranked by their law alone, without a look at the drawn token."""


class Laws:
    """The laws of m masked offsets, ascending.

    scores: raw scores [m, vocabulary] float32, guided where guidance is on, reserved tokens at minus infinity. Everything
    derived is float64 and computed when it is first asked for. All choices among equals fall on the lowest token or offset.
    """

    def __init__(
        self,
        offsets: Sequence[int],
        scores: Tensor,
        law: Law,
        chance: Chance,
        prompt: int,
        committed: int = 0,
        number: int = 0,
    ):
        """law: of the request, for temperature and filters. chance: the request's noise. prompt: tokens before offset 0.
        committed: how many tokens of the output the law has observed. number: steps taken when they were scored."""
        self.offsets = list(offsets)
        self.scores, self.law, self.chance, self.prompt, self.committed = scores, law, chance, prompt, committed
        self.number = number
        self._raw: Tensor | None = None
        self._processed: Tensor | None = None
        self._drawn: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.offsets)

    # Parts of it

    def at(self, places: Sequence[int]) -> Laws:
        """The laws at these places of `offsets`, given in ascending order."""
        index = torch.tensor(list(places), dtype=torch.long)
        offsets = [self.offsets[place] for place in places]
        part = Laws(offsets, self.scores[index], self.law, self.chance, self.prompt, self.committed, self.number)
        part._drawn = self._drawn
        part._raw = None if self._raw is None else self._raw[index]
        part._processed = None if self._processed is None else self._processed[index]
        return part

    def within(self, start: int, end: int) -> Laws:
        """The laws of the offsets in [start, end)."""
        places = [place for place, offset in enumerate(self.offsets) if start <= offset < end]
        return self if len(places) == len(self) else self.at(places)

    # The laws

    @property
    def raw(self) -> Tensor:
        """Log probabilities [m, vocabulary] float64 of the model's own law, without temperature and filters."""
        if self._raw is None:
            self._raw = _checked(self.scores.double().log_softmax(-1), self.offsets)
        return self._raw

    @property
    def processed(self) -> Tensor:
        """Log probabilities [m, vocabulary] float64 of the law that tokens are drawn from; in greedy decoding that of its
        processed scores, whose highest is the token."""
        if self._processed is None:
            steps = set(self.law.order)
            if not steps:
                self._processed = self.raw
            elif steps == {"temperature"}:
                shifted = self.raw - self.raw.amax(-1, keepdim=True)
                self._processed = (shifted / self.law.settings.temperature).log_softmax(-1)
            else:
                # The law counts the tokens before a position; which ones they are it does not ask.
                rows = [
                    self.law.scores(row, path=[0] * (offset - self.committed))
                    for row, offset in zip(self.scores, self.offsets, strict=True)
                ]
                law = torch.stack(rows).double().log_softmax(-1) if rows else self.scores.double()
                self._processed = _checked(law, self.offsets)
        return self._processed

    @property
    def probabilities(self) -> Tensor:
        """Of the law that tokens are drawn from, [m, vocabulary] float64: all of it on the likeliest in greedy decoding."""
        if self.law.greedy:
            return torch.nn.functional.one_hot(self.best, self.scores.shape[1]).double()
        return self.processed.exp()

    # Tokens

    @property
    def best(self) -> Tensor:
        """The likeliest token of each offset, [m] int64."""
        return self.processed.argmax(-1)

    def draw(self, places: Sequence[int], index: int = FIXED) -> list[int]:
        """The tokens that the law gives at these places: the likeliest in greedy decoding, otherwise by Gumbel-max with the
        noise of (position, token, index)."""
        if self.law.greedy:
            best = self.best
            return [int(best[place]) for place in places]
        from decodery.sampling.noise import Stage

        tokens = []
        for place in places:
            offset = self.offsets[place]
            if (offset, index) not in self._drawn:  # who asks again, a block schedule or a rule, gets the same draw
                token = self.chance.race(self.processed[place], self.prompt + offset, Stage.TARGET, index)
                self._drawn[offset, index] = token
            tokens.append(self._drawn[offset, index])
        return tokens

    # Ranks

    def rank(self, by: str, filtered: bool = False) -> Tensor:
        """How sure each law is, [m] float64, higher is surer: "entropy" (negative), "margin" (of the two highest
        probabilities) or "max_probability" (its logarithm). filtered: of the processed law."""
        law = self.processed if filtered else self.raw
        if by == "entropy":
            return torch.special.entr(law.exp()).sum(-1).neg()
        if by == "margin":
            top = law.topk(min(2, law.shape[1]), dim=-1).values.exp()
            return top[:, 0] - top[:, -1]
        if by == "max_probability":
            return law.max(-1).values
        raise ValueError(f"there is no rank {by!r}; known: {', '.join(RANKS)}")

    def confidence(self, tokens: Sequence[int], filtered: bool = False) -> Tensor:
        """Log probability [m] float64 of the given token of each offset."""
        law = self.processed if filtered else self.raw
        return law.gather(1, torch.tensor(list(tokens), dtype=torch.long, device=law.device)[:, None])[:, 0]


def _checked(laws: Tensor, offsets: Sequence[int]) -> Tensor:
    """The laws, unless some of them is none: then the scores were not numbers, or forbade every token."""
    spoilt = laws[:, 0].isnan().nonzero().flatten().tolist()
    if spoilt:
        raise ScoresNotNumbers(
            f"the scores of position {offsets[spoilt[0]] + 1} of the answer are not numbers", raw=True
        )
    return laws


def highest(rank: Tensor, count: int) -> list[int]:
    """The places of the `count` highest ranks, ascending; among equals the lowest places."""
    return sorted(descending(rank)[:count])


def descending(rank: Tensor) -> list[int]:
    """All places, the highest rank first; among equals the lowest place first."""
    order: list[int] = rank.sort(descending=True, stable=True).indices.tolist()
    return order
