"""Settings that name pieces of text: given as text, which the model's tokenizer turns into tokens, or as token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from decodery.errors import BadSetting
from decodery.plain import plain
from decodery.sampling.settings import Speller, ValueKind, check_token

Phrases: TypeAlias = tuple[str | tuple[int, ...], ...]
"""Texts, and sequences of token ids."""


@dataclass(frozen=True)
class Words(ValueKind):
    """One or more texts or lists of token ids, or none. A text stands for its tokens as they are written at the beginning of a
    text and behind a space."""

    option = list[str]

    def schema(self) -> Mapping[str, Any]:
        ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
        text = {"type": "string", "minLength": 1}
        return {"anyOf": [text, {"type": "array", "items": {"anyOf": [text, ids]}}]}

    def check(self, name: str, value: Any, vocabulary: int) -> Phrases:
        if isinstance(value, Mapping) or (value is not None and not isinstance(value, Iterable)):
            raise BadSetting(f"{name} takes texts or lists of token ids, not {value!r}.")
        items = (value,) if isinstance(value, str) else tuple(() if value is None else value)
        return tuple(_phrase(name, plain(item), vocabulary) for item in items)

    def spelled(self, value: Phrases, speller: Speller) -> Phrases:
        """The phrases as token ids."""

        def find() -> Phrases:
            return tuple(dict.fromkeys(ids for phrase in value for ids in self._spellings(phrase, speller)))

        return speller.remember((self, value), find)

    def _spellings(self, phrase: str | tuple[int, ...], speller: Speller) -> Iterator[tuple[int, ...]]:
        if not isinstance(phrase, str):
            yield phrase
            return
        for text in (phrase, " " + phrase.lstrip()):
            if ids := tuple(speller.encode(text)):
                yield ids

    @staticmethod
    def ids(name: str, value: Phrases) -> tuple[tuple[int, ...], ...]:
        """The phrases of a setting, which must have been turned into tokens. Raises ValueError."""
        for phrase in value:
            if isinstance(phrase, str):
                raise ValueError(
                    f"{name} holds the text {phrase!r}; a law by itself has no tokenizer, so give token ids"
                )
        return value  # type: ignore[return-value]


LONGEST_BREAKER = 40
"""Signs of a breaker that count."""
LONGEST_TAIL = 20
"""Tokens of a breaker that count, behind its first."""


@dataclass(frozen=True)
class Breakers(Words):
    """Texts, wherever tokens say them: every token that holds a text, and every token that ends as it begins, with the tokens
    of its rest behind it. Token ids stand for themselves."""

    def _spellings(self, phrase: str | tuple[int, ...], speller: Speller) -> Iterator[tuple[int, ...]]:
        if not isinstance(phrase, str):
            yield phrase
            return
        text = phrase[:LONGEST_BREAKER]
        tails = {cut: tuple(speller.encode(text[cut:])[:LONGEST_TAIL]) for cut in range(1, len(text))}
        for token, written in enumerate(speller.written()):
            if text in written:
                yield (token,)
            else:
                yield from ((token, *tail) for cut, tail in tails.items() if tail and written.endswith(text[:cut]))


def _phrase(name: str, item: Any, vocabulary: int) -> str | tuple[int, ...]:
    if isinstance(item, str) and item:
        return item
    if isinstance(item, list | tuple) and item:
        return tuple(check_token(name, token, vocabulary) for token in item)
    raise BadSetting(f"{name} needs non-empty texts, or non-empty lists of token ids, not {item!r}.")
