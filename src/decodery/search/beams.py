"""Beams: several texts grow side by side, and after each token the likeliest go on.

Candidates, finished texts and the end are those of transformers' `generate`. A search has one group of beams or several, which
advance one after the other, so that a later one may look at what the earlier ones have just chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from decodery._lazy import torch
from decodery.engine.memory import Room
from decodery.errors import Refused
from decodery.models.forward import Forward, Rows
from decodery.sampling.forbidding import highest

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.output import Output
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer
    from decodery.models.sequence import Sequence as CachedSequence

WIDEST = 256
"""Most beams of a search."""
DRAWS_NOTHING = "beams are not drawn; leave it out, and the likeliest texts are searched for"
"""Why beams refuse what shapes a law that is drawn from."""


@dataclass(frozen=True)
class Ending:
    """How finished texts are ranked, and when a search is over.

    length_penalty: a text is ranked by its sum of scores over its length to this power. early_stopping: True: as soon as there
    are as many finished texts as beams; False: when the best beam, ranked at its present length, is no better than the worst of
    them; "never": when it could not become better at any length up to `longest`.
    """

    length_penalty: float
    early_stopping: bool | str
    longest: int

    def ranked(self, total: float, length: int) -> float:
        """What a text with this sum of scores is ranked by."""
        return float(total / length**self.length_penalty)

    def best_possible(self, total: float, length: int) -> float:
        """What a beam may still be ranked by."""
        far = self.early_stopping == "never" and self.length_penalty > 0
        return self.ranked(total, self.longest if far else length)


@dataclass(frozen=True, eq=False)
class Beam:
    """A text on its way, or finished.

    total: what the search goes by, a sum over its tokens of processed scores, less what groups take off. likelihood: the same
    with nothing taken off. log_probability: of its tokens under the model's own law. sequence: its cache; None once finished.
    """

    output: Output
    sequence: CachedSequence | None
    total: float = 0.0
    likelihood: float = 0.0
    log_probability: float = 0.0

    @property
    def length(self) -> int:
        """New tokens."""
        return len(self.output.new_tokens)


class BeamGroup:
    """Beams that compete with each other.

    live: those that go on, best first. finished: the best texts that have ended, best first, with what they are ranked by.
    chosen: what the last step has kept: beams that go on and texts that ended with it. over: nothing goes on.
    """

    def __init__(
        self, width: int, ending: Ending, root: Beam, ends: int, finishes: Callable[[Output], object] | None = None
    ):
        """root: without new tokens. ends: how many tokens end a text: as many more candidates are looked at per beam. finishes:
        is shown every text that has got a token, and may end it."""
        self.width, self.ending, self._finishes = width, ending, finishes
        self.candidates = width * (1 + max(1, ends))
        self.live, self.finished = [root], list[tuple[float, Beam]]()
        self.chosen: list[Beam] = []
        self.over = False

    def advance(self, rows: Sequence[Tensor], penalties: Sequence[Tensor] | None = None) -> None:
        """Choose the next token of the beams, given the raw scores [vocabulary] after each of them.

        penalties: [vocabulary] of each beam, taken off the scores. Log probabilities are processed, not raw scores, and what
        comes out is not normalised again. Raises ScoresNotNumbers.
        """
        own = [row.float().log_softmax(dim=-1) for row in rows]
        processed = [beam.output.law.scores(row) for beam, row in zip(self.live, own, strict=True)]
        largest = [float(scores.max()) for scores in processed]
        for beam, row, value in zip(self.live, rows, largest, strict=True):
            if not value < math.inf or (max(largest) == -math.inf and not self.finished):
                beam.output.law.check(math.nan if value == math.inf else value, row)
        self.choose(
            own,
            processed,
            processed if penalties is None else [s - p for s, p in zip(processed, penalties, strict=True)],
        )

    def choose(self, own: Sequence[Tensor], processed: Sequence[Tensor], taken: Sequence[Tensor]) -> None:
        """Go on with the candidates that are best by the beams' totals and `taken`; all [vocabulary] of each beam.

        own: log probabilities of the model. processed: what is added up as the texts' likelihood. taken: as their total.
        """
        flat = torch.cat([scores + beam.total for scores, beam in zip(taken, self.live, strict=True)])
        places = highest(flat, self.candidates)
        parents, self.live, self.chosen = self.live, [], []
        for rank, (place, total) in enumerate(zip(places.tolist(), flat[places].tolist(), strict=True)):
            if total == -math.inf or (rank >= self.width and len(self.live) == self.width):
                break
            number, token = divmod(place, len(own[0]))
            parent = parents[number]
            output = parent.output.fork()
            ends = output.commit([token], own[number][None], rounds=0)
            if not ends and self._finishes is not None:
                self._finishes(output)
                ends = output.finish_reason is not None
            if (ends and rank >= self.width) or (not ends and len(self.live) == self.width):
                continue
            assert parent.sequence is not None
            beam = Beam(
                output,
                None if ends else parent.sequence.fork(),
                total,
                parent.likelihood + float(processed[number][token]),
                parent.log_probability + float(own[number][token]),
            )
            self.chosen.append(beam)
            if ends:
                self.finished.append((self.ending.ranked(total, beam.length), beam))
            else:
                self.live.append(beam)
        self.finished = sorted(self.finished, key=lambda entry: -entry[0])[: self.width]
        self.over = self._over()
        if self.over:
            self.live = []

    def _over(self) -> bool:
        if not self.live:
            return True
        if len(self.finished) < self.width:
            return False
        if self.ending.early_stopping is True:
            return True
        best = self.live[0]
        return self.ending.best_possible(best.total, best.length) <= self.finished[-1][0]


Penalties = Callable[[Sequence[BeamGroup], BeamGroup], "Sequence[Tensor] | None"]
"""The earlier groups, which have chosen, and a group that is about to: what is taken off the scores of each of its beams."""


def searched(
    request: Request, groups: int, width: int, ending: Ending, penalties: Penalties | None = None
) -> Generator[Forward | tuple[Forward, ...], Any, list[BeamGroup]]:
    """Grow `groups` groups of `width` beams until all are over. All share the prompt's rows, and each step is one forward."""
    sequence = request.new_sequence()
    yield from request.score_prompt(sequence)
    scores = yield Forward(sequence, request.tokens[sequence.length :], logits=Rows.LAST)
    output = request.output.fork()
    # A greedy law is a point mass; beams compare what it is the greatest of.
    output.law = request.law_with(temperature=1.0)
    found = [BeamGroup(width, ending, Beam(output, sequence), len(request.stop_ids)) for _ in range(groups)]
    rows = [[scores.logits[0]] for _ in found]
    del sequence, output  # who holds a cache makes others copy what they write
    while True:
        request.statistics.rounds += 1
        for place, group in enumerate(found):
            group.chosen = []
            if not group.over:
                group.advance(rows[place], penalties(found[:place], group) if penalties is not None else None)
        kept = [beam for group in found for beam in group.chosen]
        request.considered([beam.output.new_tokens for beam in kept], [beam.total for beam in kept])
        live = [beam for group in found for beam in group.live]
        if not live:
            return found
        answers = yield tuple(_step(beam, joined=place > 0) for place, beam in enumerate(live))
        del live, kept
        told = iter(answers)
        rows = [[next(told).logits[0] for _ in group.live] for group in found]


def _step(beam: Beam, joined: bool) -> Forward:
    assert beam.sequence is not None
    return Forward(beam.sequence, beam.output.tokens[-1:], logits=Rows.LAST, joined=joined)


def concluded(request: Request, ranked: Sequence[tuple[float, Beam]], name: str) -> None:
    """End a request with the first `n` of these texts and what each is ranked by. A text's weight is its probability under
    the model's own law. Raises Refused where there are fewer."""
    if len(ranked) < request.n:
        raise Refused(
            f"{name} has found {len(ranked)} texts where n={request.n} were asked for, since the settings allow no more; "
            "ask for fewer."
        )
    chosen = ranked[: request.n]
    for score, beam in chosen:
        beam.output.score = score
    request.conclude([(beam.output, math.exp(beam.log_probability)) for _, beam in chosen])


def beam_caches(request: Request, beams: int) -> list[tuple[Scorer, int]]:
    """What so many beams keep at most: the prompt once, and each its own tokens."""
    rows = len(request.prompt) + request.settings.max_new_tokens
    return [(request.network, rows), *[Room(request.network, rows, len(request.prompt))] * beams]  # type: ignore[list-item]


def check_width(name: str, request: Request, beams: int) -> None:
    """Raise Refused where more texts are asked for than there are beams."""
    if request.n > beams:
        raise Refused(f"{name} gives at most as many texts as beams, which are {beams}, and n is {request.n}.")
