"""Any-subset speculative decoding: an any-order model drafts for itself, and judges its draft by its own joint density.

Guo & Ermon, Reviving Any-Subset Autoregressive Models with Principled Parallel Sampling and Speculative Decoding, 2025, arXiv
2504.20456, algorithm 1. Two masks over the same weights play two parts: with one of them all open positions are independent
given what is known, which makes the draft of one forward; with the other each position sees those before it, which gives the
joint density of that draft in one more forward.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from decodery._lazy import torch
from decodery.any_order.base import AnyOrderMethod
from decodery.any_order.context_ngrams import ContextNgrams
from decodery.any_order.window import OrderedWindow
from decodery.engine.method import Exactness, parameter
from decodery.sampling.noise import Chance, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.forward import Forward, Scores

GAP = 1e-3
"""How far the two laws of the first drafted position may lie apart in float32 and float64. They are the same law, so more than
rounding means that a network lets its rows see what the masks hide."""


@dataclass(frozen=True)
class AnySubsetSpeculative(AnyOrderMethod):
    """Fill several positions per two forwards: drafted as if they were independent, kept as far as their joint law allows."""

    name: ClassVar[str] = "any-subset-speculative"
    title: ClassVar[str] = "Any-subset speculative decoding (ASSD)"
    paper: ClassVar[str] = (
        "Guo & Ermon, Reviving Any-Subset Autoregressive Models with Principled Parallel Sampling and Speculative Decoding, "
        "2025, arXiv 2504.20456"
    )
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING

    k: int = parameter(5, "positions that are drafted at a time", low=2)
    draft: str = parameter(
        "self",
        "who drafts: the model itself, in a forward of its own, or pairs of neighbours in what is known of the text",
        choices=("self", "ngram"),
    )
    r_atol: float = parameter(
        0.0, "is added to the probability of acceptance; above 0 the law is another one", low=0.0, high=1.0
    )

    def check(self) -> None:
        if self.r_atol > 0:
            object.__setattr__(self, "exactness", Exactness.APPROXIMATE)

    @property
    def borrowed(self) -> int:
        return self.k

    def fill_in(self, request: Request, window: OrderedWindow) -> Generator[Forward, Scores, None]:
        told = _Told(request, self.draft == "ngram")
        ngrams = ContextNgrams(request.host.network.vocabulary) if self.draft == "ngram" else None
        if ngrams is not None:
            for position in window.order.positions[: window.order.given]:
                ngrams.know(position, window.canvas.tokens[position])
        while not window.over:
            positions = window.next(self.k)
            if ngrams is None or positions[0] == 0:  # nothing stands before the very first position
                laws = yield from window.score(len(positions))
                p, certain = laws.probabilities, 1
                stages = [Stage.TARGET, *[Stage.DRAFT] * (len(positions) - 1)]
                tokens = [
                    request.noise.choose(row, position, stage)
                    for row, position, stage in zip(p, positions, stages, strict=True)
                ]
                if len(positions) == 1:
                    decided, rows, accepted = tokens, laws.scores, 0
                    window.decide(decided, rows)
                    _learn(ngrams, positions, decided)
                    continue
            else:
                p, tokens, certain = *_drafted(ngrams, window, positions, request), 0
                told.look_ups += 1
            request.output.drafted(tokens, range(-1, len(tokens) - 1))
            laws = yield from window.score(len(positions), tokens)
            q = laws.probabilities
            if certain:
                told.gap(p, q, window)
            accepted, instead = judged(p, q, tokens, request.noise, positions, self.r_atol, certain)
            decided = [*tokens[:accepted], *([] if instead is None else [instead])]
            window.keep(accepted)
            window.decide(decided, laws.scores[: len(decided)], range(certain, accepted))
            _learn(ngrams, positions, decided)
            told.iteration(len(decided))


class _Told:
    """What the statistics tell of a request's iterations: those that a draft was judged in."""

    def __init__(self, request: Request, ngrams: bool):
        self._details: dict[str, Any] = request.statistics.details
        self._details |= {"iterations": 0, "tokens_of_iterations": 0, "first_token_gap": 0.0}
        if ngrams:
            self._details["look_ups"] = 0

    @property
    def look_ups(self) -> int:
        """Drafts that were read off the text; the reference counts them as auxiliary evaluations."""
        found: int = self._details["look_ups"]
        return found

    @look_ups.setter
    def look_ups(self, count: int) -> None:
        self._details["look_ups"] = count

    def iteration(self, written: int) -> None:
        """One more, which has written so many tokens."""
        self._details["iterations"] += 1
        self._details["tokens_of_iterations"] += written

    def gap(self, p: Tensor, q: Tensor, window: OrderedWindow) -> None:
        """Both laws of the first position. Raises RuntimeError where they are not the same."""
        gap = float((p[0] - q[0]).abs().max())
        self._details["first_token_gap"] = max(self._details["first_token_gap"], gap)
        network = window.request.host.network
        if gap > GAP and network.dtype in (torch.float32, torch.float64) and not window.output.law.greedy:
            raise RuntimeError(
                f"the draft's law of the first token is {gap:.2g} away from the joint one, so {network.name} sees more than it "
                "is shown and is no any-order model"
            )


def judged(
    p: Tensor,
    q: Tensor,
    tokens: Sequence[int],
    chance: Chance,
    positions: Sequence[int],
    r_atol: float = 0.0,
    certain: int = 0,
) -> tuple[int, int | None]:
    """How many drafted tokens stand, and what is written in place of the first one that does not; None where all stand.

    p, q: laws [n, vocabulary] that the tokens were drawn from, and by which they are judged given the tokens before. positions:
    of the tokens, where draws are addressed. certain: so many first tokens were drawn from the law itself. A token that could
    not be replaced, since both laws are the same up to rounding, stands.
    """
    for place, token in enumerate(tokens):
        if place < certain:
            continue
        ratio = float(q[place, token] / p[place, token])
        if chance.accept(min(1.0, ratio + r_atol), positions[place]):
            continue
        rest = (q[place] - p[place]).clamp(min=0)
        if float(rest.sum()) > 0:
            return place, chance.choose(rest, positions[place], Stage.RESIDUAL)
    return len(tokens), None


def _drafted(
    ngrams: ContextNgrams, window: OrderedWindow, positions: Sequence[int], request: Request
) -> tuple[Tensor, list[int]]:
    """Laws [n, vocabulary] and tokens for these positions, each by its left neighbour, which may be of the same draft."""
    laws, drawn = [], dict[int, int]()
    for position in positions:
        left = drawn.get(position - 1, window.canvas.tokens[position - 1])
        law = ngrams.law(left)
        if window.output.law.greedy:
            law = torch.nn.functional.one_hot(law.argmax(), len(law)).double()
        laws.append(law)
        drawn[position] = request.noise.choose(law, position, Stage.DRAFT)
    return torch.stack(laws), list(drawn.values())


def _learn(ngrams: ContextNgrams | None, positions: Sequence[int], tokens: Sequence[int]) -> None:
    if ngrams is not None:
        for position, token in zip(positions, tokens, strict=False):
            ngrams.know(position, token)
