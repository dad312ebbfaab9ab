"""Constraints that lead to what has no end are refused, before anybody looks for it."""

from __future__ import annotations

from typing import Any

import pytest

from decodery.errors import BadSetting
from decodery.sampling.structured.constraint import constraint_of
from decodery.sampling.structured.endings import check_ends
from decodery.testing import toy_language_model


def check(**given: Any) -> None:
    constraint = constraint_of("structured_outputs", given)
    assert constraint is not None
    check_ends(constraint)


def closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


@pytest.mark.parametrize(
    ("grammar", "rule"),
    [
        ('start: "a" start', "start"),
        ('start: "b" | "a" loop\nloop: "c" loop', "loop"),
        ('start: "b" | one\none: "c" other\nother: "d" one | one "e"', "one"),
        ('start: ("a" endless)?\nendless: endless "x"', "endless"),
        ('root ::= "a" root', "start"),
    ],
)
def test_rules_without_an_end_are_named(grammar: str, rule: str) -> None:
    with pytest.raises(BadSetting, match=f"no text comes to the end of the rule {rule};"):
        check(grammar=grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        'start: "b" | "a" start',
        "start: one\none: two\ntwo: three\nthree: /x+/",
        'start: "(" start ")" |',
        'start: "a"\nnobody: "b" nobody',
        "start: %json {}",
    ],
)
def test_other_grammars_are_taken(grammar: str) -> None:
    check(grammar=grammar)


HERE = {"$ref": "#"}


@pytest.mark.parametrize(
    "schema",
    [
        closed({"a": HERE}, "a"),
        closed({"a": {"type": "string"}, "b": {"anyOf": [HERE, {"type": "array", "items": HERE, "minItems": 1}]}}, "a", "b"),
        {"$defs": {"x": closed({"y": {"$ref": "#/$defs/y"}}, "y"), "y": closed({"x": {"$ref": "#/$defs/x"}}, "x")},
         "$ref": "#/$defs/x"},
        {"$defs": {"a/b": closed({"y": {"$ref": "#/$defs/a~1b"}}, "y")}, "$ref": "#/$defs/a~1b"},
        {"type": "array", "items": HERE, "minItems": 1},
        {"type": "array", "prefixItems": [{"type": "null"}, HERE], "minItems": 2},
        {"type": "array", "prefixItems": [{"type": "null"}], "items": HERE, "minItems": 2},
        {"type": ["array", "object"], "items": HERE, "minItems": 1, "properties": {"a": HERE}, "required": ["a"]},
        {"anyOf": [closed({"a": HERE}, "a"), closed({"b": HERE}, "b")]},
        {"allOf": [{"type": "object"}, closed({"a": HERE}, "a")]},
    ],
)  # fmt: skip
def test_schemas_that_require_themselves_are_refused(schema: Any) -> None:
    with pytest.raises(BadSetting, match="the schema requires itself within itself"):
        check(json=schema)


@pytest.mark.parametrize(
    "schema",
    [
        closed({"a": HERE}),
        closed({"a": {"anyOf": [HERE, {"type": "null"}]}}, "a"),
        closed({"a": {"type": "array", "items": HERE}}, "a"),
        closed({"a": {"type": "array", "prefixItems": [{"type": "null"}, HERE], "minItems": 1}}, "a"),
        closed({"a": {"type": ["object", "null"], "properties": {"b": HERE}, "required": ["b"]}}, "a"),
        closed({"a": {"type": ["object", "array"], "properties": {"b": HERE}, "required": ["b"]}}, "a"),
        closed({"a": {"enum": [1]}, "b": {"const": 2}, "c": {}}, "a", "b", "c", "d"),
        {
            "$defs": {"x": {"type": "string"}},
            **closed({"a": {"$ref": "#/$defs/x"}, "b": {"$ref": "#/$defs/x"}}, "a", "b"),
        },
        {"type": "array", "items": HERE},
        {"type": "array", "items": HERE, "minItems": 0},
        closed({"a": {"anyOf": [{"type": "null"}]}, "b": {"$ref": "#/properties/a/anyOf/0"}}, "a", "b"),
    ],
)
def test_other_schemas_are_taken(schema: Any) -> None:
    check(json=schema)


def test_requests_with_such_are_refused_and_others_go_on() -> None:
    lm = toy_language_model()
    for given in ({"grammar": 'start: "a" start'}, {"json": closed({"a": HERE}, "a"), "disable_any_whitespace": True}):
        with pytest.raises(BadSetting, match="structured_outputs cannot be kept to"):
            lm.generate("a", max_new_tokens=4, structured_outputs=given)
    assert lm.generate("a", max_new_tokens=4, structured_outputs={"grammar": 'start: "b"'}).text == "b"
