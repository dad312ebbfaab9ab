"""Text tasks that a small grammar of its own can judge, without a grammar checker from outside.

- words_to_sentence: a sentence of the grammar in which all given words occur (many answers).
- paraphrase: another sentence of the same meaning, in the other voice or with synonyms (some answers).
- continue_pattern: the next items of a list that repeats itself (one answer).

They take the place of ParallelBench's text tasks where its files and judges are not at hand; see `judging.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

NOUNS = ("dog", "cat", "bird", "horse", "king", "queen", "farmer", "teacher")
SYNONYMS = {
    "boy": "lad",
    "rabbit": "bunny",
    "big": "large",
    "small": "little",
    "happy": "glad",
    "fast": "quick",
}
ADJECTIVES = ("red", "old", "young", "big", "large", "small", "little", "happy", "glad", "fast", "quick")
VERBS = {
    "sees": "seen",
    "likes": "liked",
    "chases": "chased",
    "finds": "found",
    "follows": "followed",
    "helps": "helped",
}
"""Third person -> participle."""
PLACES = ("garden", "house", "park", "forest", "market")
ANIMATE = (*NOUNS, "boy", "lad", "rabbit", "bunny")
FUNCTION = ("the", "in", "is", "by", ".")
PARTICIPLES = {participle: verb for verb, participle in VERBS.items()}
_CANONICAL = {second: first for first, second in SYNONYMS.items()}
_OTHER = {**SYNONYMS, **_CANONICAL}


@dataclass(frozen=True)
class Sentence:
    """Somebody does something to somebody, somewhere perhaps. Adjectives and the place may be missing."""

    subject: str
    verb: str
    object: str
    subject_adjective: str | None = None
    object_adjective: str | None = None
    place: str | None = None
    passive: bool = False

    def words(self) -> tuple[str, ...]:
        """The sentence, word by word, with a full stop."""
        subject = _phrase(self.subject_adjective, self.subject)
        object = _phrase(self.object_adjective, self.object)
        place = () if self.place is None else ("in", "the", self.place)
        if self.passive:
            return (*object, "is", VERBS[self.verb], "by", *subject, *place, ".")
        return (*subject, self.verb, *object, *place, ".")

    def content(self) -> tuple[str, ...]:
        """The words that carry the meaning."""
        parts = (self.subject, self.verb, self.object, self.subject_adjective, self.object_adjective, self.place)
        return tuple(part for part in parts if part is not None)

    def meaning(self) -> Sentence:
        """The active sentence with the first of each pair of synonyms."""
        plain = {
            name: _CANONICAL.get(value, value)
            for name in ("subject", "object", "subject_adjective", "object_adjective")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, passive=False, **plain)


def _phrase(adjective: str | None, noun: str) -> tuple[str, ...]:
    return ("the", noun) if adjective is None else ("the", adjective, noun)


def parse_sentence(words: Sequence[str]) -> Sentence | None:
    """The sentence that these words are, or None where the grammar has no such sentence."""
    left = list(words)

    def take(*wanted: str) -> bool:
        if tuple(left[: len(wanted)]) != wanted:
            return False
        del left[: len(wanted)]
        return True

    def phrase() -> tuple[str | None, str] | None:
        if not take("the"):
            return None
        adjective = left.pop(0) if left and left[0] in ADJECTIVES else None
        return (adjective, left.pop(0)) if left and left[0] in ANIMATE else None

    first = phrase()
    if first is None or not left:
        return None
    passive = take("is")
    verb = left.pop(0) if left else ""
    verb = PARTICIPLES.get(verb, "") if passive else verb
    if verb not in VERBS or (passive and not take("by")):
        return None
    second = phrase()
    if second is None:
        return None
    place = None
    if take("in", "the"):
        if not left or left[0] not in PLACES:
            return None
        place = left.pop(0)
    if left != ["."]:
        return None
    subject, object = (second, first) if passive else (first, second)
    return Sentence(subject[1], verb, object[1], subject[0], object[0], place, passive)


def draw_sentence(generator: random.Random) -> Sentence:
    """A sentence; each adjective and the place occur in half of them."""
    subject, object = generator.sample(ANIMATE, 2)
    return Sentence(
        subject,
        generator.choice(tuple(VERBS)),
        object,
        generator.choice(ADJECTIVES) if generator.random() < 0.5 else None,
        generator.choice(ADJECTIVES) if generator.random() < 0.5 else None,
        generator.choice(PLACES) if generator.random() < 0.5 else None,
    )


def paraphrases(sentence: Sentence) -> list[Sentence]:
    """All other sentences of the same meaning."""
    names = ("subject", "object", "subject_adjective", "object_adjective")
    choices = []
    for name in names:
        word = getattr(sentence, name)
        choices.append((word, _OTHER[word]) if word in _OTHER else (word,))
    found = [
        replace(sentence, passive=passive, **dict(zip(names, words, strict=True)))
        for passive in (False, True)
        for words in product(*choices)
    ]
    return [other for other in found if other != sentence]
