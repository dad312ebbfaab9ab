"""JSON schemas as regular expressions. What is said of a document is kept to, or refused by its word.

Objects hold the properties that are named, in their order, and no others, which every schema allows; keys of their own come
where an object names none. Strings hold no escapes of code points. What nests, as a schema that refers to itself, is written
out to a depth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from decodery.errors import Refused
from decodery.sampling.structured.automata import ByteAutomaton
from decodery.sampling.structured.expressions import Expression, any_of, deepest, group, literal

REMARKS = {
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$id", "$comment", "$defs",
    "definitions", "format",
}  # fmt: skip
"""Words that say nothing of a document here; `format` is looked at where a string has one."""
WORDS: Mapping[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": (),
    "boolean": (),
    "null": (),
}
"""By the type of a document: what may be said of it."""
SPACE = r"[ \n\r\t]*"
SIGN = r'(?:[^"\\\x00-\x1F\x7F]|\\["\\bfnrt])'
PLAIN = r'[^"\\\x00-\x1F\x7F]'
"""A character that stands in a string as it is."""
WHOLE = "(?:0|[1-9][0-9]*)"
NUMBER = rf"-?{WHOLE}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
MOST_INTEGERS = 1000
"""Integers between two bounds that are written out one by one."""
FORMATS = {
    "date": r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])",
    "time": r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
}
"""Days that every month has: which months have more, an expression of bearable length does not tell."""
FORMATS["date-time"] = f"{FORMATS['date']}T{FORMATS['time']}"


def schema_expression(given: Mapping[str, Any]) -> Expression:
    """The documents of a constraint's words (`json`, `json_object` and what may stand beside them). Raises Refused for a word
    that is not kept to."""
    schema = given.get("json", {"type": "object"})
    space = "" if given.get("disable_any_whitespace") else given.get("whitespace_pattern") or SPACE

    def written(nesting: int) -> tuple[str | None, bool]:
        documents = Documents(schema, space, nesting)
        return documents.of(schema, nesting), documents.cut

    return deepest(written)


def referred(whole: Any, reference: Any) -> Any:
    """The part of a schema that a reference within it names. Raises LookupError where it names none."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise LookupError(reference)
    part = whole
    for step in [step for step in reference[1:].split("/") if step]:
        step = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(part, Mapping) or step not in part:
            raise LookupError(reference)
        part = part[step]
    return part


class Documents:
    """The documents of the parts of a schema. space: what may stand between two signs. cut: whether something was left out
    that nests deeper than asked for. `left` in all of its methods: how many levels may still be opened of what nests without
    end; what they give is None where a part has no documents so shallow."""

    def __init__(self, whole: Any, space: str, nesting: int):
        self.whole, self.nesting = whole, nesting
        self.space = group(space) if space else ""
        self.cut = False
        self._open: dict[str, int] = {}
        """How often each reference is being followed."""

    def of(self, schema: Any, left: int) -> str | None:
        """The documents of a part."""
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise _refused(f"the schema {json.dumps(schema)}")
        said = {word: value for word, value in schema.items() if word not in REMARKS}
        for word, read in (
            ("const", self._const),
            ("enum", self._enum),
            ("anyOf", self._any_of),
            ("oneOf", self._one_of),
            ("$ref", self._refers),
        ):
            if word in said:
                others = sorted({*said} - {word, "type"} if word in ("const", "enum") else {*said} - {word})
                if others:
                    raise _refused(f"{others[0]} beside {word}")
                return read(said[word], left)
        kinds = said.pop("type", None)
        if kinds is None:
            kinds = [kind for kind, words in WORDS.items() if not {*said}.isdisjoint(words)] or list(WORDS)
            if said and len(kinds) == 1:
                raise _refused(f"{sorted(said)[0]} without a type")
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        known = {word for kind in kinds for word in WORDS.get(kind, ())}
        for word in sorted(said):
            if word not in known:
                raise _refused(word)
        found = [self._typed(kind, schema, left) for kind in kinds if not (kind == "integer" and "number" in kinds)]
        return _either(found)

    def _typed(self, kind: str, schema: Mapping[str, Any], left: int) -> str | None:
        if kind == "object":
            return self._object(schema, left)
        if kind == "array":
            return self._array(schema, left)
        if kind == "string":
            return _string(schema)
        if kind == "integer":
            return _integer(schema)
        simple = {"number": NUMBER, "boolean": "(?:true|false)", "null": "null"}
        if kind not in simple:
            raise _refused(f"the type {kind!r}")
        return simple[kind]

    # Parts that stand for others

    def _const(self, value: Any, left: int) -> str:
        return self._document(value)

    def _enum(self, values: Sequence[Any], left: int) -> str:
        return any_of([self._document(value) for value in values])

    def _any_of(self, parts: Sequence[Any], left: int) -> str | None:
        return _either([self.of(part, left) for part in parts])

    def _one_of(self, parts: Sequence[Any], left: int) -> str | None:
        kinds = [part.get("type") if isinstance(part, Mapping) else None for part in parts]
        named = ["number" if kind == "integer" else kind for kind in kinds if isinstance(kind, str)]
        if len({*named}) < len(parts):
            raise _refused("oneOf of parts that are not of different types")
        return self._any_of(parts, left)

    def _refers(self, reference: Any, left: int) -> str | None:
        try:
            part = referred(self.whole, reference)
        except LookupError:
            raise _refused(f"the reference {reference!r}") from None
        depth = self._open.get(reference, 0)
        if depth > self.nesting:
            self.cut = True
            return None
        self._open[reference] = depth + 1
        found = self.of(part, left)
        self._open[reference] = depth
        return found

    def _document(self, value: Any) -> str:
        """An expression of just this document."""
        if isinstance(value, Mapping):
            held = [f"{literal(json.dumps(key))}{self._sign(':')}{self._document(one)}" for key, one in value.items()]
            return self._held("{", held, "}")
        if isinstance(value, list):
            return self._held("[", [self._document(one) for one in value], "]")
        return literal(json.dumps(value, ensure_ascii=False))

    # What holds others

    def _sign(self, sign: str) -> str:
        return f"{self.space}{literal(sign)}{self.space}"

    def _held(self, opening: str, parts: Sequence[str], closing: str) -> str:
        return f"{literal(opening)}{self.space}{self._sign(',').join(parts)}{self.space}{literal(closing)}"

    def _inner(self, schema: Any, left: int) -> str | None:
        """The documents of a part within another; one of which nothing is said may nest without end."""
        if schema is True or not {*schema} - REMARKS:
            if left == 0:
                self.cut = True
                return _either([self._typed(kind, {}, 0) for kind in ("string", "number", "boolean", "null")])
            return self.of({}, left - 1)
        return self.of(schema, left)

    def _array(self, schema: Mapping[str, Any], left: int) -> str | None:
        first = [self._inner(part, left) for part in schema.get("prefixItems", ())]
        least, most = max(schema.get("minItems", 0), 0), schema.get("maxItems")
        items = schema.get("items", True)
        item = None if items is False else self._inner(items, left)
        if item is None:
            most = min(len(first), len(first) if most is None else most)
        found = []
        comma = self._sign(",")
        for count in range(len(first) + 1):  # arrays may end among the first ones
            if any(part is None for part in first[:count]) or (most is not None and count > most):
                break
            parts = [part for part in first[:count] if part is not None]
            if count < len(first) or item is None:
                if count >= least:
                    found.append(self._held("[", parts, "]"))
                continue
            fewest, more = max(least - count, 0), "" if most is None else str(most - count)
            if parts:
                loop = f"{group(comma + group(item))}{{{fewest},{more}}}"
                found.append(self._held("[", [*parts[:-1], parts[-1] + loop], "]"))
                continue
            if fewest == 0:
                found.append(self._held("[", [], "]"))
            if more != "0":
                loop = f"{group(comma + group(item))}{{{max(fewest - 1, 0)},{'' if most is None else most - 1}}}"
                found.append(self._held("[", [group(item) + loop], "]"))
        return any_of(found) if found else None

    def _object(self, schema: Mapping[str, Any], left: int) -> str | None:
        named = schema.get("properties", {})
        required = schema.get("required", [])
        for name in required:
            if name not in named:
                raise _refused(f"required {json.dumps(name)}, which properties do not name")
        if not named:
            return self._free_object(schema.get("additionalProperties", True), left)
        members: list[tuple[str, bool]] = []
        for name, part in named.items():
            documents = self._inner(part, left)
            if documents is not None:
                key = literal(json.dumps(name, ensure_ascii=False))
                members.append((f"{key}{self._sign(':')}{group(documents)}", name in required))
            elif name in required:
                return None
        comma = self._sign(",")
        found = []
        for place, (member, needed) in enumerate(members):
            rest = [
                comma + other if other_needed else group(comma + other) + "?"
                for other, other_needed in members[place + 1 :]
            ]
            found.append(member + "".join(rest))
            if needed:
                break
        else:
            found.append("")
        return self._held("{", [any_of(found)], "}")

    def _free_object(self, schema: Any, left: int) -> str | None:
        documents = None if schema is False else self._inner(schema, left)
        if documents is None:
            return self._held("{", [], "}")
        member = f'"{SIGN}*"{self._sign(":")}{group(documents)}'
        return self._held("{", [group(f"{member}{group(self._sign(',') + member)}*") + "?"], "}")


def _either(found: Sequence[str | None]) -> str | None:
    patterns = [pattern for pattern in found if pattern is not None]
    return any_of(patterns) if patterns else None


def _string(schema: Mapping[str, Any]) -> str:
    least, most = schema.get("minLength"), schema.get("maxLength")
    pattern, form = schema.get("pattern"), schema.get("format")
    if sum(thing is not None for thing in (pattern, form, least if most is None else most)) > 1:
        raise _refused("a string with more than one of pattern, format and bounds of its length")
    if form is not None:
        if form not in FORMATS:
            raise _refused(f"the format {form!r}")
        return f'"{FORMATS[form]}"'
    if pattern is None:
        bounds = "*" if least is None and most is None else f"{{{least or 0},{'' if most is None else most}}}"
        return f'"{SIGN}{bounds}"'
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[begins : len(pattern) - ends]
    if {"^", "$"} & {*inner.replace("[^", "").replace("\\^", "").replace("\\$", "")} or (
        (begins or ends) and _forks(inner)
    ):
        raise _refused(f"the pattern {pattern!r}, whose anchors do not stand around all of it")
    moves = ByteAutomaton.of(inner).moves
    if any((moves[:-1, byte] < len(moves) - 1).any() for byte in (*range(32), 34, 92, 127)):
        raise _refused(f"the pattern {pattern!r}, which lets signs come that are escaped in JSON")
    around = f"{PLAIN}*"
    return f'"{"" if begins else around}{group(inner)}{"" if ends else around}"'


def _forks(pattern: str) -> bool:
    """Whether a pattern has alternatives that are in no group, to which anchors at its ends would not belong alike."""
    depth, skipped, within = 0, False, False
    for sign in pattern:
        if skipped:
            skipped = False
        elif sign == "\\":
            skipped = True
        elif within:
            within = sign != "]"
        elif sign == "[":
            within = True
        elif sign in "()":
            depth += 1 if sign == "(" else -1
        elif sign == "|" and depth == 0:
            return True
    return False


def _integer(schema: Mapping[str, Any]) -> str:
    lows = [schema[word] + shift for word, shift in (("minimum", 0), ("exclusiveMinimum", 1)) if word in schema]
    highs = [schema[word] - shift for word, shift in (("maximum", 0), ("exclusiveMaximum", 1)) if word in schema]
    if any(bound != int(bound) for bound in (*lows, *highs)):
        raise _refused("bounds of an integer that are no integers")
    low, high = int(max(lows)) if lows else None, int(min(highs)) if highs else None
    if low is not None and high is not None:
        if not 0 <= high - low < MOST_INTEGERS:
            raise _refused(
                f"an integer between {low} and {high}; at least 1 and at most {MOST_INTEGERS} integers are told apart"
            )
        return any_of([literal(str(number)) for number in range(low, high + 1)])
    if (low, high) == (None, None):
        return f"-?{WHOLE}"
    if high is None and low in (0, 1):
        return WHOLE if low == 0 else "[1-9][0-9]*"
    raise _refused(
        f"an integer of {'at least ' + str(low) if high is None else 'at most ' + str(high)}, without the other bound"
    )


def _refused(what: str) -> Refused:
    return Refused(f"structured_outputs cannot be kept to on a canvas, since its JSON schema has {what}.")
