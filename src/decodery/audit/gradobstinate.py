"""GradObstinate: words that mean something else, and the model predicts the same.

The embedding of an important word is moved by gradients so that the prediction stays, and tokens whose embeddings lie that way
are tried; only what real tokens do counts, and what is returned was read again from its text.

Source: Wang, Shi and Zhang, arXiv 2307.12507 (version 1: Investigating the Existence of "Secret Language" in Language Models).
The full text was not to be had. From the abstracts: the goal, important words, gradients over the whole vocabulary, dissimilar
words, transfer. **Reconstructed here**, and perhaps otherwise in the paper: the score of importance, the loss, where the search
begins, the step and the projection, the list of first order, the filters, and every default of `ObstinateSettings`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decodery.audit.evidence import Tell, silent
from decodery.audit.predictions import Prediction, PredictionGradient, Predictor
from decodery.audit.substitutes import SubstituteWords, TextWord, content_words, token_spans, tokens_of
from decodery.errors import BadInput
from decodery.evaluation.intervals import Array

FAR = 0.2
"""Cosine to the word, in the model's own embeddings, below which a search begins (reconstructed)."""


@dataclass(frozen=True)
class ObstinateSettings:
    """words: how many are replaced. steps, rate: of a search; the rate in mean lengths of embeddings. every: steps after which
    the embedding is put onto a real token. candidates: of the list of first order that is tried then; 0: the nearest tokens
    alone. penalty, margin: of the cosine to the word in the loss. similarity: below which a word means something else to the
    judge. restarts: searches for a word, until one finds something. All reconstructed."""

    words: int = 1
    steps: int = 20
    rate: float = 0.5
    every: int = 5
    candidates: int = 50
    penalty: float = 1.0
    margin: float = 0.2
    similarity: float = 0.3
    restarts: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("words", "steps", "every", "restarts"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("candidates", "penalty"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name} must not be negative, not {getattr(self, name):g}.")
        if not self.rate > 0:
            raise BadInput(f"rate must be above 0, not {self.rate:g}.")
        for name in ("margin", "similarity"):
            if not -1 <= getattr(self, name) <= 1:
                raise BadInput(f"{name} is a cosine, from -1 to 1, not {getattr(self, name):g}.")


@dataclass(frozen=True)
class Substitution:
    """A word and what stands for it. start: where the substitute lies in the changed text. similarity: in the judge's eyes.
    checked: real tokens that were read for it. searches: that were begun."""

    word: str
    substitute: str
    start: int
    similarity: float
    checked: int
    searches: int


@dataclass(frozen=True)
class ObstinateText:
    """A text whose words were replaced. found: whether as many as were wanted are, the prediction is the same, and reading the
    text again said so. divergence: KL of the predictions, nats. change: of the logarithm of what was predicted, nats. checked:
    real tokens that were read, for each word tried."""

    text: str
    changed: str
    found: bool
    substitutions: tuple[Substitution, ...]
    divergence: float
    change: float
    checked: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "substitutions": [asdict(one) for one in self.substitutions]}


def first_order(table: Tensor, row: Tensor, gradient: Tensor, allowed: Tensor, count: int) -> list[int]:
    """The rows of a table [n, width] that a loss would fall most at, were it linear around `row` [width] with this gradient: at
    most `count` numbers of allowed ones ([n] bool), best first, the lowest number among equals."""
    fall = ((table - row) @ gradient).masked_fill(~allowed, torch.inf)
    return torch.argsort(fall, stable=True)[: min(count, int(allowed.sum()))].tolist()


def important_words(predictor: Predictor, text: str, prediction: Prediction | None = None) -> list[TextWord]:
    """The content words of a text, the most important first: by how far the logarithm of what is predicted falls where a word
    is left out (reconstructed). Raises BadInput where there are none."""
    prediction = prediction or predictor.predict(text)
    spans, ids = token_spans(predictor.lm, predictor.whole(text), prediction.ids), prediction.ids
    before = len(predictor.question.before)
    there = [(word, tokens_of(spans, before + word.start, before + word.end)) for word in content_words(text)]
    words = [(word, place) for word, place in there if place is not None]
    if not words:
        raise BadInput(f"the text {text[:60]!r} has no content word behind a space that could be replaced.")
    laws = predictor.laws_like(prediction, [[*ids[:first], *ids[last:]] for _, (first, last) in words])
    changes = [prediction.change(law) for law in laws]
    return [words[place][0] for place in np.argsort(changes, kind="stable")]


class GradObstinate:
    """Replaces words of texts under one model and question.

    substitutes: of the same model. Raises Refused where the model's path has no modules.
    """

    def __init__(
        self,
        predictor: Predictor,
        substitutes: SubstituteWords,
        settings: ObstinateSettings | None = None,
        gradient: PredictionGradient | None = None,
    ):
        self.predictor, self.substitutes = predictor, substitutes
        self.settings = settings or ObstinateSettings()
        self.gradient = gradient or PredictionGradient(predictor)
        self.table = self.gradient.rows(substitutes.tokens.tolist())
        self.length = float(self.table.norm(dim=1).mean())

    def attack(self, text: str, words: Sequence[TextWord] | None = None, tell: Tell = silent) -> ObstinateText:
        """Replace words of a text. words: those to replace, in this order; None: the most important ones. Raises BadInput."""
        prediction = self.predictor.predict(text)
        if words is None:
            words = important_words(self.predictor, text, prediction)[: self.settings.words]
        chance = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.settings.seed, *text.encode()))))

        def searching(state: TrialText, word: TextWord) -> Iterator[list[int]]:
            return self.candidates(state, word, chance)

        return replaced_words(self.predictor, self.substitutes, prediction, text, words, self.settings, searching, tell)

    def candidates(
        self, state: TrialText, word: TextWord, chance: np.random.Generator, start: int | None = None
    ) -> Iterator[list[int]]:
        """Substitutes for a word to be tried, as numbers in `substitutes`, a few at a time, for as long as they are asked for.
        A new search is announced by an empty list.

        start: number at which every search begins; None: a random one. Raises BadInput where it is a form of the word, where
        the loss is flat.
        """
        told, table = self.settings, self.table
        place, ids = state.place(word), list(state.ids)
        own = self.gradient.rows(ids[slice(*place)]).mean(0)
        fine, _ = self.substitutes.allowed(word.text, told.similarity)
        allowed = torch.from_numpy(fine).to(table.device)
        far = np.flatnonzero(fine & (_cosine(table, own).cpu().numpy() < FAR))
        if start is not None and not fine[start]:
            raise BadInput(
                f"{self.substitutes.words[start]!r} is no substitute for {word.text!r}: at the word itself the loss is flat."
            )
        for _ in range(told.restarts):
            if not len(far):
                return
            row = table[int(chance.choice(far)) if start is None else start]
            yield []
            for step in range(1, told.steps + 1):
                slope = self.slope(state, place, row, own)
                if not bool(slope.any()):  # nothing to follow; the next search begins elsewhere
                    break
                real = step % told.every == 0 or step == told.steps
                listed = first_order(table, row, slope, allowed, told.candidates) if real else []
                row = row - told.rate * self.length * slope / slope.norm()
                nearest = int((table - row).square().sum(1).masked_fill(~allowed, torch.inf).argmin())
                yield list(dict.fromkeys([nearest, *listed]))
                if real:
                    row = table[state.best]

    def slope(self, state: TrialText, place: tuple[int, int], row: Tensor, own: Tensor) -> Tensor:
        """The gradient of the loss at an embedding [width] that stands for the tokens of a word, [width]."""
        told, prediction, gradient = self.settings, state.prediction, self.gradient
        ids, goes_on = list(state.ids), self.predictor.goes_on(prediction)
        before, after = gradient.rows(ids[: place[0]]), gradient.rows(ids[place[1] :])
        wanted = torch.from_numpy(prediction.law).float().to(row.device)
        with torch.enable_grad():
            moved = row.detach().clone().requires_grad_(True)
            law = gradient.law(torch.cat([before, moved[None], after]), goes_on)
            divergence = (wanted.exp() * (wanted - law)).sum()
            near = told.penalty * (_cosine(moved[None], own)[0] - told.margin).clamp_min(0)
            return torch.autograd.grad(divergence + near, moved)[0]


def _cosine(rows: Tensor, other: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(rows, other[None], dim=1)


class TrialText:
    """A text in which a word is being replaced. best: the number of the best substitute that was tried last."""

    def __init__(self, predictor: Predictor, prediction: Prediction, text: str):
        self.predictor, self.prediction, self.text = predictor, prediction, text
        self.ids = predictor.ids(text)
        self.best = 0
        self._spans = token_spans(predictor.lm, predictor.whole(text), self.ids)

    def place(self, word: TextWord) -> tuple[int, int]:
        """The tokens of a word, first and one past the last. Raises BadInput where a token says more than the word."""
        before = len(self.predictor.question.before)
        found = tokens_of(self._spans, before + word.start, before + word.end)
        if found is None:
            raise BadInput(f"{word.text!r} at {word.start} is no word with a space before it in tokens of its own.")
        return found

    def with_token(self, word: TextWord, token: int) -> list[int]:
        """The tokens with another one for a word."""
        first, last = self.place(word)
        return [*self.ids[:first], token, *self.ids[last:]]


def replaced_words(
    predictor: Predictor,
    substitutes: SubstituteWords,
    prediction: Prediction,
    text: str,
    words: Sequence[TextWord],
    settings: ObstinateSettings,
    searching: Any,
    tell: Tell = silent,
) -> ObstinateText:
    """Replace words one after the other, each by the best of what a search proposes, and keep what was replaced.

    searching: (trial text, word) -> lists of numbers of substitutes to try; an empty list begins a new search. It ends with the
    first list in which a substitute keeps the prediction and is verified; of several the one of least divergence, then least
    similarity, then lowest token.
    """
    current, shift, checked = text, {word: word.start for word in words}, []
    made: list[Substitution] = []
    for number, word in enumerate(words):
        tell("words", number, len(words))
        state = TrialText(predictor, prediction, current)
        here = replace(word, start=shift[word], end=shift[word] + len(word.text))
        allowed, similar = substitutes.allowed(word.text, settings.similarity)
        seen: dict[int, Array] = {}
        chosen, searches = None, 0
        for listed in searching(state, here):
            searches += not listed
            new = [one for one in listed if one not in seen]
            if new:
                tried = [state.with_token(here, int(substitutes.tokens[one])) for one in new]
                seen.update(zip(new, predictor.laws_like(prediction, tried), strict=True))
            ranked = sorted(
                listed,
                key=lambda one: (not prediction.same(seen[one]), prediction.divergence(seen[one]), similar[one], one),
            )
            state.best = ranked[0] if ranked else state.best
            for one in ranked:
                if not prediction.same(seen[one]) or not allowed[one]:
                    continue
                changed = f"{current[: here.start]}{substitutes.words[one]}{current[here.end :]}"
                done = Substitution(
                    word.text, substitutes.words[one], here.start, float(similar[one]), len(seen), searches
                )
                if verified(predictor, substitutes, prediction, changed, [*made, done], settings.similarity):
                    chosen = changed, done
                    break
            if chosen is not None:
                break
        checked.append(len(seen))
        if chosen is None:
            continue
        current, done = chosen
        moved = len(done.substitute) - len(word.text)
        shift = {other: start + moved * (start > here.start) for other, start in shift.items()}
        made = [*(replace(one, start=one.start + moved * (one.start > here.start)) for one in made), done]
    law = predictor.laws_like(prediction, [predictor.ids(current)])[0]
    found = len(made) == len(words) == settings.words and verified(
        predictor, substitutes, prediction, current, made, settings.similarity
    )
    return ObstinateText(
        text, current, found, tuple(made), prediction.divergence(law), prediction.change(law), tuple(checked)
    )


def verified(
    predictor: Predictor,
    substitutes: SubstituteWords,
    prediction: Prediction,
    changed: str,
    made: Sequence[Substitution],
    similarity: float,
) -> bool:
    """Whether a changed text, read from its characters, has the same prediction, every substitute in its place as a token, and
    none that means the word to the judge."""
    ids = predictor.ids(changed)
    spans, before = token_spans(predictor.lm, predictor.whole(changed), ids), len(predictor.question.before)
    for one in made:
        end = one.start + len(one.substitute)
        place = tokens_of(spans, before + one.start, before + end)
        if place is None or place[1] - place[0] != 1 or changed[one.start : end] != one.substitute:
            return False
        if substitutes.judge.similarity(one.word, one.substitute) >= similarity:
            return False
    return prediction.same(predictor.laws_like(prediction, [ids])[0])


def perplexity(predictor: Predictor, text: str) -> float:
    """Of a text under the model that is asked."""
    scored = predictor.lm.score(text)
    return math.exp(-scored.log_probability / max(1, int(scored.logprobs.isfinite().sum())))
