"""Regular expressions that stand for constraints: what they are made of, and how deep they go."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass

from decodery.errors import BadSetting

AS_THEY_ARE = frozenset(string.ascii_letters + string.digits + " \"',:;=!@%_/")
"""Characters that mean themselves everywhere in an expression."""
MOST_CHARACTERS = 8000
"""Of an expression, beyond which nothing more is nested."""
DEEPEST = 8
"""Levels of nesting that are written out at most."""


@dataclass(frozen=True)
class Expression:
    """A regular expression in the form of Rust's package regex, for whole texts. nesting: levels to which what nests is written
    out; None where it says all that the constraint does."""

    pattern: str
    nesting: int | None = None


def deepest(written: Callable[[int], tuple[str | None, bool]]) -> Expression:
    """What `written` gives for the deepest nesting that is short enough: an expression, and whether something deeper was left
    out. Raises BadSetting where there is no text: what has one has one in which nothing nests within itself."""
    best: Expression | None = None
    for nesting in range(DEEPEST + 1):
        pattern, cut = written(nesting)
        if pattern is None:
            raise BadSetting("structured_outputs accepts no text that has an end.")
        if best is not None and len(pattern) > MOST_CHARACTERS:
            break
        best = Expression(pattern, nesting if cut else None)
        if not cut:
            break
    assert best is not None
    return best


def literal(text: str) -> str:
    """An expression that matches just this text."""
    return "".join(sign if sign in AS_THEY_ARE else f"\\x{{{ord(sign):x}}}" for sign in text)


def group(pattern: str) -> str:
    """The same as one part of a longer expression."""
    return pattern if len(pattern) == 1 and pattern in AS_THEY_ARE else f"(?:{pattern})"


def any_of(patterns: list[str]) -> str:
    """What matches one of these."""
    distinct = list(dict.fromkeys(patterns))
    return distinct[0] if len(distinct) == 1 else group("|".join(distinct))
