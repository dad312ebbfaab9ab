"""Self-consistency: several samples, and the answer that most of them give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import parameter
from decodery.search import answers
from decodery.search.tries import Try, TryingMethod
from decodery.search.votes import Key, count, decided

if TYPE_CHECKING:
    from decodery.engine.request import Request


@dataclass(frozen=True)
class SelfConsistency(TryingMethod):
    """Draw several texts, read the answer out of each, and give the answer that most of them agree on."""

    name: ClassVar[str] = "self-consistency"
    title: ClassVar[str] = "Self-consistency"
    paper: ClassVar[str] = (
        "Wang et al., Self-Consistency Improves Chain of Thought Reasoning in Language Models, ICLR 2023, arXiv 2203.11171"
    )

    samples: int = parameter(40, "tries", low=1, high=1024)
    answer: str = parameter("math", "what is read out of a text and voted on", choices=answers.KINDS)
    votes: str = parameter(
        "equal",
        "what a vote weighs: all the same, or the probability of its text per token (the geometric mean of its tokens')",
        choices=("equal", "likelihood"),
    )
    stop_when_decided: bool = parameter(
        False,
        "skip tries that cannot change the winning answer any more; at_once says after how many it is asked",
        only={"votes": "equal"},
    )

    def decided(self, tries: Sequence[Try]) -> bool:
        left = [(0, number) for number in range(len(tries), self.samples)]
        return self.stop_when_decided and decided(self._read(tries), left)

    def ranked(self, request: Request, tries: Sequence[Try]) -> list[tuple[Try, float, float]]:
        read = self._read(tries)
        weights = {(0, one.number): math.exp(one.mean) for one in tries} if self.votes == "likelihood" else None
        vote = count(read, weights)
        whole = sum(vote.histogram.values())
        shares = {answer: votes / whole if whole else 0.0 for answer, votes in vote.histogram.items()}
        request.statistics.details.update(
            answer=vote.winner,
            votes=dict(vote.histogram),
            consensus=vote.consensus,
            abstained=sum(answer is None for answer in read.values()),
            tries_planned=self.samples,
        )
        # First a text of each answer, most votes first; then further ones of the same answers, and who abstained.
        places = {answer: place for place, answer in enumerate(vote.histogram)}
        seen: dict[str, int] = {}
        ordered = []
        for one in tries:
            answer = read[0, one.number]
            if answer is None:
                ordered.append(((1, 0, 0, one.number), one, 0.0))
                continue
            again = seen[answer] = seen.get(answer, -1) + 1
            ordered.append(((0, again, places[answer], one.number), one, shares[answer]))
        ordered.sort(key=lambda entry: entry[0])
        return [(one, share, share) for _, one, share in ordered]

    def _read(self, tries: Sequence[Try]) -> dict[Key, str | None]:
        return {(0, one.number): answers.parse(one.output.text, self.answer) for one in tries}
