"""Constraints over a vocabulary of signs: token 0 is A, token 1 is B, and so on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import SimpleNamespace
from typing import Any

from decodery.sampling.structured.constraint import constraint_of
from decodery.sampling.structured.grammars import Compiled, Grammars


class Signs:
    """One sign a token; `words`: what tokens say instead."""

    def __init__(self, size: int, words: tuple[str, ...] = ()):
        self.size, self._words = size, words
        self.tokenizer: Any = SimpleNamespace(decode=lambda ids: "".join(self.written()[token] for token in ids))

    def encode(self, text: str) -> list[int]:
        return [sign % self.size for sign in text.encode()]

    def written(self) -> list[str]:
        return list(self._words) or [chr(ord("A") + token) for token in range(self.size)]

    def remember(self, key: Hashable, make: Callable[[], Any]) -> Any:
        return make()


def over_letters(size: int, words: tuple[str, ...] = (), **given: Any) -> Compiled:
    """A constraint compiled over these tokens."""
    constraint = constraint_of("structured_outputs", given)
    assert constraint is not None
    return Grammars.of(Signs(size, words)).compiled(constraint)
