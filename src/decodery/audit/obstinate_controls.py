"""What obstinate words are compared with: words drawn at random, opposites, and another model.

Source: Wang, Shi and Zhang, arXiv 2307.12507, whose control is a list of antonyms, and whose substitutions are tried on other
models; the draws at random are added here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from decodery.audit.antonyms import ANTONYMS
from decodery.audit.gradobstinate import ObstinateSettings, ObstinateText, TrialText, replaced_words
from decodery.audit.predictions import Prediction, Predictor
from decodery.audit.substitutes import SubstituteWords, TextWord, content_words
from decodery.errors import BadInput

AT_ONCE = 50
"""Random words that are read in a pass."""


def random_words(
    predictor: Predictor,
    substitutes: SubstituteWords,
    prediction: Prediction,
    text: str,
    words: Sequence[TextWord],
    draws: Sequence[int],
    settings: ObstinateSettings,
) -> ObstinateText:
    """Replace words by random ones of the same allowed vocabulary. draws: for each word how many are tried, until one keeps the
    prediction."""
    chance = np.random.Generator(np.random.Philox(np.random.SeedSequence((settings.seed, 1, *text.encode()))))
    counts = iter(draws)

    def drawing(state: TrialText, word: TextWord) -> Iterator[list[int]]:
        allowed, _ = substitutes.allowed(word.text, settings.similarity)
        fine = np.flatnonzero(allowed)
        drawn = chance.permutation(fine)[: next(counts)].tolist()
        for start in range(0, len(drawn), AT_ONCE):
            yield drawn[start : start + AT_ONCE]

    return replaced_words(predictor, substitutes, prediction, text, words, settings, drawing)


def with_random_words(
    substitutes: SubstituteWords, text: str, words: Sequence[TextWord], settings: ObstinateSettings
) -> str:
    """A text with each word replaced by one random word of its allowed vocabulary, whatever the model says then."""
    chance = np.random.Generator(np.random.Philox(np.random.SeedSequence((settings.seed, 2, *text.encode()))))
    for word in sorted(words, key=lambda one: -one.start):
        allowed, _ = substitutes.allowed(word.text, settings.similarity)
        if not allowed.any():
            raise BadInput(f"no word is allowed in place of {word.text!r}; raise the threshold of similarity.")
        other = substitutes.words[int(chance.choice(np.flatnonzero(allowed)))]
        text = f"{text[: word.start]}{other}{text[word.end :]}"
    return text


def rewritten(text: str, dictionary: Mapping[str, str], words: Sequence[TextWord] | None = None) -> str:
    """A text with every content word of a dictionary, or those of some words that it has, replaced; capitals stay."""
    for word in sorted(content_words(text) if words is None else words, key=lambda one: -one.start):
        other = dictionary.get(word.text.lower())
        if other is not None:
            other = other.capitalize() if word.text[0].isupper() else other
            text = f"{text[: word.start]}{other}{text[word.end :]}"
    return text


def with_antonyms(text: str, words: Sequence[TextWord]) -> str | None:
    """A text with words replaced by their opposites; None where one has none that is known."""
    if not all(word.text.lower() in ANTONYMS for word in words):
        return None
    return rewritten(text, ANTONYMS, words)


def dictionary_of(found: Sequence[ObstinateText], least: int = 1) -> dict[str, str]:
    """Of each word the substitute that was found most often, at least so often; the first in the alphabet among equals."""
    pairs = Counter((one.word.lower(), one.substitute) for text in found if text.found for one in text.substitutions)
    chosen: dict[str, str] = {}
    for (word, other), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        if count >= least:
            chosen.setdefault(word, other)
    return chosen


def keeps(predictor: Predictor, text: str, changed: str) -> bool:
    """Whether a model predicts the same of both texts."""
    prediction = predictor.predict(text)
    return prediction.same(predictor.laws_like(prediction, [predictor.ids(changed)])[0])
