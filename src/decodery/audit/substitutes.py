"""Which words of a text are replaced, and by which tokens: whole words that mean something else, in another model's eyes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from decodery.errors import BadInput
from decodery.evaluation.intervals import Array
from decodery.scoring import spelled

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

WORD = re.compile(r"(?<=\s)[A-Za-z]{2,}(?![A-Za-z'’])")
"""A word with a space before it: the form in which tokens begin a word."""
SHORTEST_STEM = 3
ENDINGS = (
    "ingly",
    "iness",
    "iest",
    "ness",
    "edly",
    "ily",
    "ing",
    "ied",
    "ier",
    "ies",
    "est",
    "ed",
    "er",
    "es",
    "ly",
    "s",
    "y",
    "e",
)
_LISTED = """
a about above after again against all also am an and any are as at be because been before being below between both but by can
could did do does doing down during each either few for from further had has have having he her here hers herself him himself
his how i if in into is it its itself just may me might more most must my myself neither no nor not now of off on once one
only or other our ours ourselves out over own same shall she should so some such than that the their theirs them themselves
then there these they this those though through to too two under until up upon us very was we were what when where whether
which while who whom whose why will with would yet you your yours yourself
""".split()  # noqa: SIM905
FUNCTION_WORDS = frozenset(_LISTED)
"""Words without a meaning of their own, which are not replaced."""


@dataclass(frozen=True)
class TextWord:
    """A word of a text. start, end: in characters."""

    text: str
    start: int
    end: int


def content_words(text: str) -> list[TextWord]:
    """The words that may be replaced: letters alone, a space before them, no function words."""
    return [
        TextWord(found.group(), found.start(), found.end())
        for found in WORD.finditer(text)
        if found.group().lower() not in FUNCTION_WORDS
    ]


def related(one: str, other: str) -> bool:
    """Whether two words are forms of one word, by their letters: the same stem, or one begins or ends as the whole other."""
    one, other = sorted((one.lower(), other.lower()), key=len)
    alike = len(one) >= SHORTEST_STEM and (other.startswith(one) or other.endswith(one))
    return alike or one == other or _stem(one) == _stem(other)


def _stem(word: str) -> str:
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= SHORTEST_STEM:
            return word[: -len(ending)]
    return word


def token_spans(lm: LanguageModel, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Of each token, where its part of a text lies. Raises BadInput where the tokens say another text."""
    said, spans = spelled(lm.tokenizer, (), list(ids))
    if said != text:
        raise BadInput(f"the tokenizer of {lm.name} reads the text as {said[:60]!r}, so its words cannot be found.")
    return spans


def tokens_of(spans: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int] | None:
    """Which tokens say a word and the space before it and nothing else, first and one past the last; None where none do.

    start, end: of the word, in characters.
    """
    inside = [place for place, (one, other) in enumerate(spans) if one < end and other >= start and other > one]
    if (
        inside and spans[inside[0]][1] == start and spans[inside[0]][0] != start - 1
    ):  # a token that ends before the word
        inside = inside[1:]
    if not inside or spans[inside[0]][0] != start - 1 or spans[inside[-1]][1] != end:
        return None
    return inside[0], inside[-1] + 1


class MeaningJudge:
    """How similar words are, by the embeddings of another model than the one that is attacked: the cosine of the means of
    their tokens' rows, less the mean of all rows. Raises BadInput where its model takes no embeddings."""

    def __init__(self, lm: LanguageModel):
        self.lm, self.name = lm, lm.name
        try:
            self.middle = self._rows(range(lm.network.vocabulary)).mean(0)
        except ValueError as error:
            raise BadInput(f"{lm.name} cannot judge meanings: {error}.") from None

    def vectors(self, words: Sequence[str]) -> Array:
        """Of length 1, [words, width]."""
        tokens = [self.lm.encode(f" {word}") for word in words]
        rows = self._rows([token for ids in tokens for token in ids]) - self.middle
        places = np.cumsum([0, *map(len, tokens)])
        found = np.stack([rows[a:b].mean(0) for a, b in pairwise(places)])
        return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9))

    def similarities(self, word: str, others: Array) -> Array:
        """Of a word to words whose vectors [words, width] are given, [words]."""
        return np.asarray(others @ self.vectors([word])[0])

    def similarity(self, word: str, other: str) -> float:
        """Of two words, from -1 to 1."""
        return float(self.similarities(word, self.vectors([other]))[0])

    def _rows(self, tokens: Sequence[int]) -> Array:
        return np.asarray(self.lm.network.embed(torch.tensor(list(tokens))).float().cpu().numpy())


class SubstituteWords:
    """The tokens of a model that are a space and letters, and which of them may stand for a word.

    tokens: [n]. words: of each. Raises BadInput where the judge is the model itself.
    """

    def __init__(self, lm: LanguageModel, judge: MeaningJudge):
        if judge.lm.network is lm.network or judge.name == lm.name:
            raise BadInput(f"{lm.name} cannot judge meanings for itself; name another model as the judge.")
        self.judge = judge
        spellings = [(token, _word(lm.tokenizer.decode([token]))) for token in range(lm.network.vocabulary)]
        found = [(token, word) for token, word in spellings if word and lm.encode(f" {word}") == [token]]
        self.tokens = np.array([token for token, _ in found], dtype=np.int64)
        self.words = [word for _, word in found]
        if not found:
            raise BadInput(f"{lm.name} has no tokens that begin a word.")
        self.vectors = judge.vectors(self.words)
        self._looked_at: dict[str, tuple[NDArray[np.bool_], Array]] = {}

    def allowed(self, word: str, threshold: float) -> tuple[NDArray[np.bool_], Array]:
        """Which tokens may stand for a word, [n] bool: no form of it, and less similar to it than the threshold; and how
        similar they are, [n]."""
        if word not in self._looked_at:
            other = np.array([not related(word, one) for one in self.words])
            self._looked_at[word] = other, self.judge.similarities(word, self.vectors)
        other, similar = self._looked_at[word]
        return other & (similar < threshold), similar


def _word(text: str) -> str:
    """What follows the space that a token begins with, where that is letters alone; tokenizers that write the space as a mark
    leave it out when a token is decoded alone, so both forms are looked at."""
    match = re.fullmatch(r" ?([A-Za-z]{2,})", text)
    return match.group(1) if match else ""
