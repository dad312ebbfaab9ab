"""Regular expressions that stand for constraints: what they are made of, and how deep they go."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass

from decodery.errors import Refused

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


class TooDeep(Exception):
    """Every text of the language nests deeper than was asked for."""


def deepest(written: Callable[[int], tuple[str, bool]]) -> Expression:
    """What `written` gives for the deepest nesting that is short enough; with whether something deeper was left out. Raises
    Refused where nothing is short enough, or nothing is that shallow."""
    best: Expression | None = None
    for nesting in range(DEEPEST + 1):
        try:
            pattern, cut = written(nesting)
        except TooDeep:
            continue
        if best is not None and len(pattern) > MOST_CHARACTERS:
            break
        best = Expression(pattern, nesting if cut else None)
        if not cut:
            break
    if best is None:
        raise Refused(
            f"structured_outputs cannot be kept to on a canvas: all its texts nest more than {DEEPEST} levels deep."
        )
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
