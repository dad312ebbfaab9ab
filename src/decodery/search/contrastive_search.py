"""Contrastive search: of the likeliest tokens the one whose hidden row is least like those of the text so far.

Su et al., A Contrastive Framework for Neural Text Generation, 2022, arXiv 2202.06417.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.engine.needs import NEXT_TOKENS, MoreThanChains, Requirement, Taps
from decodery.models.forward import POST_NORM, Forward, Rows, Tree
from decodery.sampling.forbidding import FORBIDDEN, highest

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.models.scorer import Scorer


@dataclass(frozen=True)
class ContrastiveSearch(Method):
    """Score the k likeliest tokens as candidates, and take the one of the highest (1 - alpha) * probability - alpha * the
    largest cosine between its hidden row and those before it."""

    name: ClassVar[str] = "contrastive-search"
    title: ClassVar[str] = "Contrastive search"
    paper: ClassVar[str] = "Su et al., A Contrastive Framework for Neural Text Generation, 2022, arXiv 2202.06417"
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "search"
    needs: ClassVar[tuple[Requirement, ...]] = (
        NEXT_TOKENS,
        Taps(),
        MoreThanChains("scores its candidates side by side"),
    )
    refuses: ClassVar[Mapping[str, str]] = {"temperature": "it is a deterministic rule, which draws nothing"}

    alpha: float = parameter(0.6, "weight of the penalty for likeness (penalty_alpha); 0 is greedy", low=0.0, high=1.0)
    k: int = parameter(4, "candidates (top_k in transformers)", low=1)

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        return [(network, rows + self.k) for network, rows in super().caches(request)]

    def decode(self, request: Request) -> Decoding:
        sequence = request.new_sequence()
        before: list[Tensor] = []
        if request.settings.echo:  # the prompt may be scored before, in pieces
            yield from request.score_prompt(
                sequence, lambda _, scores: before.append(scores.hidden[POST_NORM]), (POST_NORM,)
            )
        pending = request.tokens[sequence.length :]
        scores: Scores = yield Forward(sequence, pending, taps=(POST_NORM,), logits=Rows.LAST)
        seen = _unit(torch.cat([*before, scores.hidden[POST_NORM]]))
        row, rounds = scores.logits[0], 2
        while True:
            law = request.law.scores(row)
            tokens = [token for token in highest(law, self.k).tolist() if law[token] > FORBIDDEN]
            start, position = sequence.length, sequence.next_position
            scores = yield Forward(
                sequence,
                tokens,
                [position] * len(tokens),
                Tree([-1] * len(tokens)),
                taps=(POST_NORM,),
            )
            likely = law.softmax(dim=-1)[tokens].double().cpu()
            rows = _unit(scores.hidden[POST_NORM])
            alike = (rows @ seen.T).amax(dim=1).double().cpu()
            best = int(((1 - self.alpha) * likely - self.alpha * alike).argmax())
            sequence.keep([start + best], start)
            if request.commit([tokens[best]], row[None], rounds=rounds):
                return
            seen, row, rounds = torch.cat([seen, rows[best : best + 1]]), scores.logits[best], 1


def _unit(rows: Tensor) -> Tensor:
    """The rows [n, hidden] float32, each of length 1."""
    return torch.nn.functional.normalize(rows.float(), dim=-1)
