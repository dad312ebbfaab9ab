"""CNTP: where the law is uncertain, several tries at the next clause, and the one of the lowest perplexity is kept.

Wang et al., Cautious Next Token Prediction, 2025, arXiv 2507.03038.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from decodery._lazy import torch
from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.errors import BadParameter, Refused
from decodery.models.forward import Forward, Rows
from decodery.search.punctuation import clause_ends

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.output import Output
    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.models.scorer import Scorer
    from decodery.models.sequence import Sequence as CachedSequence


@dataclass(eq=False)
class Trial:
    """One try at the next clause. number: of its draws. rows: [vocabulary] the raw scores that each token was drawn from.
    surprise: the sum of what its tokens cost, in nats."""

    output: Output
    sequence: CachedSequence
    number: tuple[str, int, int]
    tokens: list[int] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    surprise: float = 0.0
    over: bool = False

    @property
    def perplexity(self) -> float:
        """That of its tokens; infinite where it overflows."""
        mean = self.surprise / len(self.tokens)
        return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True)
class CautiousNextToken(Method):
    """Sample a token where the law is sure; else sample several tries at a clause, the more the less sure it is, and append the
    one of the lowest perplexity."""

    name: ClassVar[str] = "cautious-next-token"
    title: ClassVar[str] = "Cautious next token prediction"
    paper: ClassVar[str] = "Wang et al., Cautious Next Token Prediction, 2025, arXiv 2507.03038 (github wyzjack/CNTP)"
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "search"

    trials: int = parameter(10, "most tries at a clause; 1 is plain sampling", low=1, high=64)
    low: float = parameter(0.01, "entropy of the processed law, in nats, up to which one token is sampled", low=0.0)
    high: float = parameter(1.5, "entropy from which all tries are made", low=0.0)
    rule: str = parameter("paper", "how tries grow in between, in the paper or its code", choices=("paper", "code"))
    score: str = parameter(
        "processed",
        "whose probabilities make the perplexity: of the law that was sampled from, or the model's own",
        choices=("processed", "raw"),
    )
    choice: str = parameter(
        "perplexity",
        "which try is kept; sum: of the highest probability, first: whatever the first one is",
        choices=("perplexity", "sum", "first"),
    )
    commit: str = parameter("clause", "what of it is appended", choices=("clause", "token"))
    marks: str = parameter(
        "text",
        "what ends a clause: tokens whose text ends in a mark or holds a line break, or the ten ids of the official code",
        choices=("text", "reference"),
    )
    longest: int = parameter(64, "most tokens of a try (published: no limit)", low=1)

    def check(self) -> None:
        if self.high <= self.low:
            raise BadParameter(f"{self.name}: high must be above low, which is {self.low:g}, not {self.high:g}.")

    def admit(self, request: Request) -> None:
        source = request.settings.chance
        if source.target_only and not request.law.greedy and self.trials > 1:
            raise Refused(f"{self.name} does not run with chance {source.name}: {source.target_only}.")

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        return super().caches(request) * (self.trials + 1 if self.trials > 1 else 1)

    def tries(self, entropy: float) -> int:
        """How many tries are made where the processed law has this entropy, in nats."""
        share = (entropy - self.low) / (self.high - self.low)
        if self.rule == "paper":
            return max(1, min(self.trials, math.floor(share * self.trials)))
        return int(1 + (self.trials - 1) * min(max(share, 0.0), 1.0))

    def decode(self, request: Request) -> Decoding:
        ends = request.remember((self.name, self.marks), lambda: clause_ends(request.host, self.marks), everywhere=True)
        events: list[dict[str, Any]] = []
        request.statistics.details["events"] = events
        sequence = request.new_sequence()
        yield from request.score_prompt(sequence)
        pending = list(request.tokens[sequence.length :])
        while True:
            scores: Scores = yield Forward(sequence, pending, logits=Rows.LAST)
            row = scores.logits[0]
            entropy = 0.0 if request.law.greedy else _entropy(request.law.probabilities(row))
            count = self.tries(entropy)
            if count == 1:
                token = request.draw(row)
                if request.commit([token], scores.logits):
                    return
                pending = [token]
                continue
            tried = yield from self._try(request, sequence, row, count, ends)
            before = request.new_tokens
            costs = [-trial.surprise / len(trial.tokens) for trial in tried]
            request.considered([[*before, *trial.tokens] for trial in tried], costs)
            kept = self._chosen(tried)
            winner = tried[kept]
            appended = len(winner.tokens) if self.commit == "clause" else 1
            events.append(
                {
                    "position": request.position,
                    "entropy": entropy,
                    "lengths": [len(trial.tokens) for trial in tried],
                    "perplexities": [trial.perplexity for trial in tried],
                    "kept": kept,
                    "appended": appended,
                }
            )
            longest = max(len(trial.tokens) for trial in tried)
            if request.commit(winner.tokens[:appended], winner.rows[:appended], rounds=longest):
                return
            sequence = winner.sequence
            sequence.truncate(len(request.tokens) - 1)
            pending = request.tokens[-1:]

    def _try(
        self, request: Request, sequence: CachedSequence, row: Tensor, count: int, ends: frozenset[int]
    ) -> Generator[tuple[Forward, ...], tuple[Scores, ...], list[Trial]]:
        """`count` tries at the next clause, in step. The first token of each is drawn from a row that is there already."""
        position = request.position
        tried = [Trial(request.output.fork(), sequence.fork(), ("trial", position, number)) for number in range(count)]
        going, rows = tried, [row] * count
        while True:
            for trial, own in zip(going, rows, strict=True):
                self._draw(trial, own, ends)
            going = [trial for trial in going if not trial.over]
            if not going:
                return tried
            answers = yield tuple(
                Forward(trial.sequence, trial.tokens[-1:], logits=Rows.LAST, joined=place > 0)
                for place, trial in enumerate(going)
            )
            rows = [answer.logits[0] for answer in answers]

    def _draw(self, trial: Trial, row: Tensor, ends: frozenset[int]) -> None:
        law = row.log_softmax(dim=-1) if self.score == "raw" else trial.output.law.log_probabilities(row)
        token = trial.output.draw(row, index=trial.number)
        trial.tokens.append(token)
        trial.rows.append(row)
        trial.surprise -= float(law[token])
        trial.over = trial.output.commit([token], row[None]) or token in ends or len(trial.tokens) >= self.longest

    def _chosen(self, tried: list[Trial]) -> int:
        if self.choice == "first":
            return 0
        costs = [trial.surprise / (len(trial.tokens) if self.choice == "perplexity" else 1) for trial in tried]
        return costs.index(min(costs))


def _entropy(law: Tensor) -> float:
    return float(torch.special.entr(law.double()).sum())
