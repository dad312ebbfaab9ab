"""How methods, targets and sources of chance are written: name(key=value, …)."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

from decodery.errors import BadParameter

_PARTS = re.compile(r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,'"])+""")
"""What stands between the commas of a spec; a comma within quotes does not count."""
_BARE = re.compile(r"[\w./:~@+-]+")
"""A word that needs no quotes: smollm2-135m, owner/name, ./folder."""
_WORDS = {"true": True, "false": False, "none": None, "inf": math.inf, "-inf": -math.inf}


def parse_spec(text: str) -> tuple[str, dict[str, Any]]:
    """Split "name" or "name(key=value, …)". Values are Python literals or bare words; raises BadParameter."""
    name, bracket, rest = text.strip().partition("(")
    name = name.strip()
    if not bracket:
        return name, {}
    unreadable = BadParameter(f"cannot read {text!r}; parameters are written as name(key=value, key=value).")
    inside = rest[:-1].strip().removesuffix(",")
    parts = _PARTS.findall(inside)
    if not rest.endswith(")") or ",".join(parts) != inside:
        raise unreadable
    values: dict[str, Any] = {}
    for part in parts:
        key, sign, word = part.partition("=")
        key, word = key.strip(), word.strip()
        if not sign or not word or not key.isidentifier():
            raise unreadable
        if key in values:
            raise BadParameter(f"{text!r} gives {key} twice.")
        values[key] = _literal(text, word)
    return name, values


def _literal(text: str, word: str) -> Any:
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        if not _BARE.fullmatch(word):
            raise BadParameter(f"cannot read the value {word!r} in {text!r}; quote it if it is a name.") from None
        return word


def written(value: Any, kind: str) -> str:
    """A value of a parameter of this type as `parse_spec` reads it."""
    if value is None:  # where strings are allowed, auto is one
        return "None" if "str" in kind.split(" | ") else "auto"
    if not isinstance(value, str):
        return str(value)
    plain = _BARE.fullmatch(value) and _literal(value, value) == value
    return value if plain else repr(value)
