"""Answers read out of generated texts, brought into one form, so that equal ones are equal."""

from __future__ import annotations

import re
from fractions import Fraction

KINDS = ("text", "math", "letter", "index")
"""What is read: the whole text, a number or expression, the letter of an option, or the number of one."""

_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:\s*/\s*\d+)?")
_QUANTITY = re.compile(rf"\$?({_NUMBER.pattern})\s*(?:\\?%|\\?\$|[A-Za-z°][A-Za-z°\s]*)?")
"""A number with the unit that it is given in, if any."""
_LETTER = re.compile(r"(?<![A-Za-z])\(?([A-Z])\)?(?![A-Za-z])")
_ANSWER = re.compile(r"answer(?:\s+is)?\s*[:=]?\s*", re.IGNORECASE)
_WITHOUT_MEANING = re.compile(r"\\(?:left|right|displaystyle|,|;|!|:| )")


def parse(text: str, kind: str) -> str | None:
    """The answer in a text, normalised; None where there is none.

    kind: "text": all of it, with single blanks. "math": the last boxed expression, or else the last number. "letter": the
    capital letter that stands alone last, after the last "answer" where that word occurs. "index": the last whole number.
    Raises ValueError for another kind.
    """
    if kind == "text":
        return " ".join(text.split()) or None
    if kind == "math":
        boxed = last_boxed(text)
        if boxed is not None:
            return normalise(boxed) or None
        plain = _FRACTION.sub(_slash, text)
        numbers = [match[0] for match in _NUMBER.finditer(plain) if match[0]]
        return normalise(numbers[-1]) if numbers else None
    if kind == "letter":
        boxed = last_boxed(text)
        tail = _ANSWER.split(text if boxed is None else boxed)[-1]
        letters = _LETTER.findall(tail) or _LETTER.findall(text)
        return letters[0 if len(_ANSWER.split(text)) > 1 and boxed is None else -1] if letters else None
    if kind == "index":
        numbers = re.findall(r"\d+", text)
        return str(int(numbers[-1])) if numbers else None
    raise ValueError(f"there is no kind of answer {kind!r}; known: {', '.join(KINDS)}")


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{…}, braces within it in pairs; None without one that is closed."""
    for start in reversed([match.end() for match in re.finditer(r"\\f?boxed\s*\{", text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start:place]
    return None


def normalise(expression: str) -> str:
    """A mathematical expression in one form: numbers as reduced fractions ("0.5", "\\frac12" and "1/2" are "1/2"), without
    thousands separators, units and a full stop; other expressions without blanks and marks of layout."""
    text = _WITHOUT_MEANING.sub("", expression.replace("\\$", "$").strip().strip("$").strip())
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r" \1", text).strip()
    text = _FRACTION.sub(_slash, text).removesuffix(".").strip()
    quantity = _QUANTITY.fullmatch(text)
    if quantity is not None and quantity[1]:
        try:
            return str(Fraction(re.sub(r"[\s,]", "", quantity[1]))) if "." not in quantity[1] else _decimal(quantity[1])
        except ZeroDivisionError:
            return re.sub(r"\s", "", text)
    return re.sub(r"\s", "", text)


def _slash(match: re.Match[str]) -> str:
    above = match[1] if match[1] is not None else match[2]
    below = match[3] if match[3] is not None else match[4]
    simple = re.fullmatch(r"-?[\w.]+", above) and re.fullmatch(r"[\w.]+", below)
    return f"{above}/{below}" if simple else f"({above})/({below})"


def _decimal(number: str) -> str:
    above, _, below = re.sub(r"[\s,]", "", number).partition("/")
    return str(Fraction(above) / Fraction(below or "1"))
