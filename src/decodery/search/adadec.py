"""AdaDec: greedy decoding that pauses where the law is uncertain, looks ahead from the likeliest tokens, and takes the one
whose continuation is likeliest.

He et al., Towards Better Code Generation: Adaptive Decoding with Uncertainty Guidance, 2025, arXiv 2506.08980.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from decodery._lazy import torch
from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.models.forward import Forward, Rows
from decodery.sampling.forbidding import FORBIDDEN, highest

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.models.scorer import Scorer
    from decodery.models.sequence import Sequence as CachedSequence

GREEDY = "it is a deterministic rule, which draws nothing"
QWEN = 1.321
"""The threshold that the authors learned for Qwen3-0.6B, the smallest of their models."""


@dataclass(eq=False)
class Branch:
    """A candidate and its greedy continuation. tokens: both. own: log probability of the candidate; extension: of the other
    tokens that count, which are `length`. rows: the raw scores [vocabulary] behind the candidate, and so on."""

    sequence: CachedSequence
    tokens: list[int]
    own: float
    extension: float = 0.0
    length: int = 0
    rows: list[Tensor] = field(default_factory=list)
    over: bool = False

    @property
    def score(self) -> float:
        """Mean log probability of the candidate and its continuation."""
        return (self.own + self.extension) / (self.length + 1)


@dataclass(frozen=True)
class AdaptiveDecoding(Method):
    """Decode greedily while the entropy is low; where it is not, extend each of the likeliest tokens by a few, and commit the
    token of the best mean log probability."""

    name: ClassVar[str] = "adadec"
    title: ClassVar[str] = "AdaDec"
    paper: ClassVar[str] = (
        "He et al., Towards Better Code Generation: Adaptive Decoding with Uncertainty Guidance, 2025, arXiv 2506.08980 "
        "(github SYSUSELab/AdaDec)"
    )
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "search"
    refuses: ClassVar[Mapping[str, str]] = {"temperature": GREEDY}

    threshold: float = parameter(
        QWEN,
        "entropy of the model's own law, in nats, from which it pauses; `decodery train adadec-threshold` learns a model's",
        low=0.0,
    )
    candidates: int = parameter(3, "tokens that are tried", low=1)
    lookahead: int = parameter(5, "most tokens behind each of them", low=0)
    until: str = parameter(
        "end",
        "what ends a text beside its end token; function: a line that is not indented, as behind a function's body",
        choices=("end", "function"),
    )
    mode: str = parameter(
        "engine",
        "engine: a continuation that ends stops there; reference: as in the official code, which goes on adding to its score",
        choices=("engine", "reference"),
    )
    reuse: bool = parameter(True, "the scores behind the token that wins are not computed again")

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        rows = len(request.prompt) + request.settings.max_new_tokens
        return [*super().caches(request), *[(request.network, rows + self.lookahead)] * self.candidates]

    def decode(self, request: Request) -> Decoding:
        pauses: list[dict[str, Any]] = []
        details = request.statistics.details
        details.update(pauses=pauses, steps=0, reused=0)
        sequence = request.new_sequence()
        yield from request.score_prompt(sequence)
        pending, row = list(request.tokens[sequence.length :]), None
        while True:
            if row is None:
                scores: Scores = yield Forward(sequence, pending, logits=Rows.LAST)
                row = scores.logits[0]
            details["steps"] += 1
            entropy = _entropy(row)
            token, following = request.law.likeliest(row), None
            if entropy >= self.threshold:
                branches = yield from self._look_ahead(request, sequence, row)
                scored = [branch.score for branch in branches]
                best = branches[scored.index(max(scored))]
                pauses.append(
                    {
                        "position": request.position,
                        "entropy": entropy,
                        "candidates": [branch.tokens[0] for branch in branches],
                        "lengths": [branch.length for branch in branches],
                        "asked": max(len(branch.rows) for branch in branches),
                        "scores": scored,
                        "sums": [branch.own + branch.extension for branch in branches],
                        "chosen": best.tokens[0],
                    }
                )
                token = best.tokens[0]
                if self.reuse and best.rows:
                    sequence, following = best.sequence, best.rows[0]
                    sequence.truncate(request.position + 1)
            if request.commit([token], row[None]):
                return
            if self.until == "function" and ends_function(_decoded(request, request.new_tokens), behind=True):
                request.finish("stop")
                return
            pending, row = [token], following
            details["reused"] += following is not None

    def _look_ahead(
        self, request: Request, sequence: CachedSequence, row: Tensor
    ) -> Generator[tuple[Forward, ...], tuple[Scores, ...], list[Branch]]:
        law = request.law.scores(row)
        logarithms = law.log_softmax(dim=-1)
        tokens = [token for token in highest(law, self.candidates).tolist() if law[token] > FORBIDDEN]
        branches = [Branch(sequence.fork(), [token], float(logarithms[token])) for token in tokens]
        if self.mode == "engine":
            for branch in branches:
                branch.over = self._ends(branch, request)
        for _ in range(min(self.lookahead, request.network.context - request.position - 1)):
            going = [branch for branch in branches if not branch.over or self.mode == "reference"]
            if not going:
                break
            answers = yield tuple(
                Forward(branch.sequence, branch.tokens[-1:], logits=Rows.LAST, joined=place > 0)
                for place, branch in enumerate(going)
            )
            for branch, answer in zip(going, answers, strict=True):
                after = answer.logits[0]
                token = request.law.likeliest(after, branch.tokens)
                own = request.law.scores(after, branch.tokens).log_softmax(dim=-1)
                branch.rows.append(after)
                branch.tokens.append(token)
                branch.extension += float(own[token])
                branch.length += not branch.over
                branch.over = branch.over or self._ends(branch, request)
        return branches

    def _ends(self, branch: Branch, request: Request) -> bool:
        """Whether the text is over with the last token of a branch. The official code knows no end token in its look-ahead."""
        if self.mode == "engine" and branch.tokens[-1] in request.stop_ids:
            return True
        return self.until == "function" and ends_function(_decoded(request, [*request.new_tokens, *branch.tokens]))


BLANK_LINES = 4


def ends_function(text: str, behind: bool = False) -> bool:
    """Whether the text of a completion has left the function's body: a line that is neither blank nor begins with a space or
    tab, or four blank lines at its end. behind: outside of the look-ahead a last line that ends in "Human" counts too."""
    lines = text.split("\n")
    if any(line.strip() and line[0] not in " \t" for line in lines):
        return True
    if len(lines) >= BLANK_LINES and not any(line.strip() for line in lines[-BLANK_LINES:]):
        return True
    return behind and lines[-1].rstrip().endswith("Human")


def _decoded(request: Request, tokens: Sequence[int]) -> str:
    return request.host.tokenizer.decode(list(tokens), skip_special_tokens=True)


def _entropy(row: Tensor) -> float:
    return float(torch.special.entr(row.double().softmax(dim=-1)).sum())
