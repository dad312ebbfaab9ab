"""The processed law: from the raw scores of a position to the distribution its token is drawn from.

A law is an ordered list of steps; the order is data and is reported with the result. Each step sees the prefix of the
row it works on, so a law means the same for a node of a draft tree as for the next token of plain decoding. Everything
that a user sets (temperature, truncation, penalties, biases, own processors) lives here, and every verifier and drafter
works on what comes out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from decodery.errors import ScoresNotNumbers
from decodery.sampling.top import likeliest

MINUS_INFINITY = float("-inf")
TINY_TEMPERATURE = 1e-30

DEFAULT_ORDER = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "min_new_tokens",
    "processors",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
)
"""The order of transformers' `generate` (vLLM's differs only in that min_p comes before top_k and top_p)."""


@dataclass(frozen=True)
class LawSettings:
    """What shapes the law of a token. The neutral value of each switches its step off.

    temperature: 0 is greedy decoding, a branch of its own: the steps after "processors" are skipped and the highest
        score wins, the lowest token id among equals.
    top_k: keep the k highest scores (0: all). top_p: keep the smallest set of most likely tokens whose mass reaches p.
    min_p: keep tokens at least min_p times as likely as the likeliest.
    repetition_penalty: divide positive and multiply negative scores of tokens seen in prompt or output (CTRL, 2019).
    presence_penalty, frequency_penalty: subtract once, or per occurrence, for tokens seen in the output (OpenAI).
    logit_bias: token id -> value added to its score.
    min_new_tokens: stop tokens are impossible before this many new tokens, whatever processors say. Where processors leave
        nothing but stop tokens, they are not heard before.
    processors: callables (input_ids [1, n], scores [1, vocabulary]) -> scores, as in transformers.
    order: names of the steps in the order in which they are applied.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_new_tokens: int = 0
    processors: tuple[Callable[[Tensor, Tensor], Tensor], ...] = ()
    order: tuple[str, ...] = DEFAULT_ORDER


class Law:
    """The processed law of one request.

    settings: see `LawSettings`; prompt: the prompt's token ids; stop_ids: tokens that end the output.
    The committed output is told by `observe`; the tokens of a draft path are given per row.
    """

    def __init__(self, settings: LawSettings, prompt: Sequence[int], stop_ids: Sequence[int] = ()):
        self.settings = settings
        self.greedy = settings.temperature == 0
        self._stop_ids = list(stop_ids)
        self._tokens = list(prompt)
        self._prompt = len(self._tokens)
        self._seen: dict[int, int] = dict.fromkeys(self._tokens, 0)
        """Token -> occurrences in the output; 0 for tokens of the prompt alone."""
        self._steps = [(name, _STEPS[name]) for name in settings.order if _active(name, settings, self.greedy)]
        self.uses_prefix = any(name in _PREFIX_STEPS for name, _ in self._steps)

    @property
    def order(self) -> tuple[str, ...]:
        """The steps that are switched on, in order."""
        return tuple(name for name, _ in self._steps)

    def observe(self, token: int) -> None:
        """A token was committed."""
        self._tokens.append(token)
        self._seen[token] = self._seen.get(token, 0) + 1

    def fork(self) -> Law:
        """An independent copy, which observes tokens of its own from here on."""
        twin = copy.copy(self)
        twin._tokens, twin._seen = list(self._tokens), dict(self._seen)
        return twin

    def scores(self, row: Float[Tensor, "vocabulary"], path: Sequence[int] = ()) -> Float[Tensor, "vocabulary"]:
        """Processed scores [vocabulary] float32 of a raw row, after the committed tokens and then `path`.

        Forbidden tokens are at minus infinity. The input is not changed.
        """
        if not self._steps:
            return row.float()
        prefix = _Prefix(self, path)
        # One private copy; the steps work in place on it.
        scores = row.float().clone()
        for _, step in self._steps:
            scores = step(scores, prefix, self.settings)
        return scores

    def log_probabilities(
        self, row: Float[Tensor, "vocabulary"], path: Sequence[int] = ()
    ) -> Float[Tensor, "vocabulary"]:
        """Log probabilities [vocabulary] float32 of the processed law. In greedy decoding a point mass."""
        if self.greedy:
            law = torch.full_like(row, MINUS_INFINITY, dtype=torch.float32)
            law[self.likeliest(row, path)] = 0.0
            return law
        law = torch.log_softmax(self.scores(row, path).float(), dim=-1)
        # One score that is no number, or none that is above minus infinity, spoils the sum that all are divided by.
        if bool(law[0].isnan()):
            raise self._complaint(row, path)
        return law

    def likeliest(self, row: Float[Tensor, "vocabulary"], path: Sequence[int] = ()) -> int:
        """The token of the highest processed score, the lowest id among equals. Raises ScoresNotNumbers where there is none."""
        scores = self.scores(row, path)
        token = likeliest(scores)
        self.check(float(scores[token]), row, path)
        return token

    def check(self, highest: float, row: Float[Tensor, "vocabulary"], path: Sequence[int] = ()) -> None:
        """Raise ScoresNotNumbers unless the highest of a row's scores, for which one that is no number passes, is a score."""
        if math.isnan(highest) or highest == MINUS_INFINITY:
            raise self._complaint(row, path)

    def _complaint(self, row: Float[Tensor, "vocabulary"], path: Sequence[int]) -> ScoresNotNumbers:
        """What to say of a row, by the step that spoilt it."""
        scores, prefix = row.float().clone(), _Prefix(self, path)
        what = _fault(scores)
        if what is not None:
            return ScoresNotNumbers(f"the network's scores of token {prefix.new_tokens + 1} {what}", raw=True)
        for name, step in self._steps:
            scores = step(scores, prefix, self.settings)
            what = _fault(scores)
            if what is not None:
                return ScoresNotNumbers(
                    f"the scores of token {prefix.new_tokens + 1} {what} after the step {name} of the settings"
                )
        return ScoresNotNumbers(
            f"the scores of token {prefix.new_tokens + 1} have no sum, since one of them is infinite"
        )


def _fault(scores: Float[Tensor, "vocabulary"]) -> str | None:
    if bool(scores.isnan().any()):
        return "are not numbers"
    highest = float(scores.max())
    if highest == MINUS_INFINITY:
        return "forbid every token"
    return "are infinite" if math.isinf(highest) else None


class _Prefix:
    """What a step may know of the tokens before its row."""

    __slots__ = ("law", "path")

    def __init__(self, law: Law, path: Sequence[int]):
        self.law, self.path = law, path

    @property
    def new_tokens(self) -> int:
        return len(self.law._tokens) - self.law._prompt + len(self.path)

    @property
    def stop_ids(self) -> list[int]:
        return self.law._stop_ids

    def tokens(self) -> list[int]:
        return self.law._tokens + list(self.path)

    def counts(self) -> dict[int, int]:
        if not self.path:
            return self.law._seen
        counts = dict(self.law._seen)
        for token in self.path:
            counts[token] = counts.get(token, 0) + 1
        return counts


Row = Float[Tensor, "vocabulary"]
Step = Callable[[Tensor, _Prefix, LawSettings], Tensor]


def _repetition_penalty(scores: Row, prefix: _Prefix, settings: LawSettings) -> Row:
    ids = torch.tensor(list(prefix.counts()), dtype=torch.long, device=scores.device)
    seen = scores[ids]
    penalty = settings.repetition_penalty
    scores[ids] = torch.where(seen > 0, seen / penalty, seen * penalty)
    return scores


def _output_counts(scores: Tensor, prefix: _Prefix) -> tuple[Tensor, Tensor]:
    counts = {token: count for token, count in prefix.counts().items() if count}
    ids = torch.tensor(list(counts), dtype=torch.long, device=scores.device)
    return ids, torch.tensor(list(counts.values()), dtype=scores.dtype, device=scores.device)


def _presence_penalty(scores: Row, prefix: _Prefix, settings: LawSettings) -> Row:
    ids, _ = _output_counts(scores, prefix)
    scores[ids] -= settings.presence_penalty
    return scores


def _frequency_penalty(scores: Row, prefix: _Prefix, settings: LawSettings) -> Row:
    ids, counts = _output_counts(scores, prefix)
    scores[ids] -= settings.frequency_penalty * counts
    return scores


def _logit_bias(scores: Row, prefix: _Prefix, settings: LawSettings) -> Row:
    for token, value in settings.logit_bias.items():
        scores[token] += value
    return scores


def _min_new_tokens(scores: Row, prefix: _Prefix, settings: LawSettings) -> Row:
    if prefix.new_tokens < settings.min_new_tokens:
        scores[prefix.stop_ids] = MINUS_INFINITY
    return scores


def _processors(scores: Row, prefix: _Prefix, settings: LawSettings) -> Row:
    ids = torch.tensor([prefix.tokens()], device=scores.device)
    early = prefix.new_tokens < settings.min_new_tokens and bool(prefix.stop_ids)
    rows = scores[None].clone() if early else scores[None]  # processors may work in place
    for processor in settings.processors:
        rows = processor(ids, rows)
    return _without_ends(rows[0], scores, prefix) if early else rows[0]


def _without_ends(wanted: Row, before: Row, prefix: _Prefix) -> Row:
    """Processed scores with the stop tokens forbidden; the scores before, where only stop tokens were allowed."""
    stops = torch.tensor(prefix.stop_ids, device=wanted.device)
    scores = wanted.index_fill(0, stops, MINUS_INFINITY)
    forced = bool((scores == MINUS_INFINITY).all()) and bool((wanted[stops] > MINUS_INFINITY).any())
    return before.index_fill(0, stops, MINUS_INFINITY) if forced else scores


def _temperature(scores: Row, prefix: _Prefix, settings: LawSettings) -> Row:
    if settings.temperature < TINY_TEMPERATURE:
        # The quotient would overflow. Shifted by the highest score, it is 0 there and falls to minus infinity elsewhere.
        return ((scores.double() - scores.max()) / settings.temperature).float()
    return scores / settings.temperature


def _top_k(scores: Row, prefix: _Prefix, settings: LawSettings) -> Row:
    if settings.top_k >= scores.shape[0]:
        return scores
    # Scores equal to the k-th are kept, as in transformers.
    least = scores.topk(settings.top_k).values[-1]
    return scores.masked_fill(scores < least, MINUS_INFINITY)


def _top_p(scores: Row, prefix: _Prefix, settings: LawSettings) -> Row:
    ordered, ids = scores.sort(descending=True, stable=True)
    mass = ordered.softmax(dim=-1).cumsum(dim=-1)
    # A token is dropped when the mass of those before it already reaches p; the first always stays.
    drop = torch.zeros_like(mass, dtype=torch.bool)
    drop[1:] = mass[:-1] >= settings.top_p
    return scores.index_fill(0, ids[drop], MINUS_INFINITY)


def _min_p(scores: Row, prefix: _Prefix, settings: LawSettings) -> Row:
    probabilities = scores.softmax(dim=-1)
    return scores.masked_fill(probabilities < settings.min_p * probabilities.max(), MINUS_INFINITY)


_STEPS: dict[str, Step] = {
    "repetition_penalty": _repetition_penalty,
    "presence_penalty": _presence_penalty,
    "frequency_penalty": _frequency_penalty,
    "logit_bias": _logit_bias,
    "min_new_tokens": _min_new_tokens,
    "processors": _processors,
    "temperature": _temperature,
    "top_k": _top_k,
    "top_p": _top_p,
    "min_p": _min_p,
}
_PREFIX_STEPS = frozenset(
    {"repetition_penalty", "presence_penalty", "frequency_penalty", "min_new_tokens", "processors"}
)
_SHARPENING = frozenset({"temperature", "top_k", "top_p", "min_p"})
"""Steps that cannot change which score is highest; greedy decoding does without them."""

_NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "min_new_tokens": 0,
    "processors": (),
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
}


def _active(name: str, settings: LawSettings, greedy: bool) -> bool:
    if greedy and name in _SHARPENING:
        return False
    return bool(getattr(settings, name) != _NEUTRAL[name])
