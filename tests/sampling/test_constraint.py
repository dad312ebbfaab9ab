"""What a user may give as a constraint: every form that OpenAI, vLLM and Python have for it, and what is wrong with others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from decodery.errors import BadSetting
from decodery.sampling.structured.constraint import Constraint, constraint_of
from decodery.sampling.structured.setting import Constraints

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


class Point(BaseModel):
    x: int
    y: int


def of(value: Any) -> Constraint | None:
    return constraint_of("structured_outputs", value)


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}, {"json": SCHEMA}),
        ({"type": "json_schema", "name": "n", "schema": SCHEMA}, {"json": SCHEMA}),
        ({"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}, {"json": SCHEMA}),
        ({"type": "json_object"}, {"json_object": True}),
        ({"json": json.dumps(SCHEMA)}, {"json": SCHEMA}),
        (Point, {"json": Point.model_json_schema()}),
        ({"json": Point}, {"json": Point.model_json_schema()}),
        (int, {"json": {"type": "integer"}}),
        (Literal["a", "b"], {"json": {"enum": ["a", "b"], "type": "string"}}),
        ({"choice": ["a"]}, {"choice": ("a",)}),
        ({"choice": "a"}, {"choice": ["a"]}),
        ({"regex": "a+", "json": None, "json_object": False}, {"regex": "a+"}),
        ({"grammar": 'root ::= "a" | "b"'}, {"grammar": 'start: root\nroot: "a" | "b"'}),
    ],
)
def test_other_words_for_the_same(given: Any, same: Any) -> None:
    found, expected = of(given), of(same)
    assert found is not None
    assert expected is not None
    if "grammar" not in found.kind:
        assert found.grammar == expected.grammar
    assert found.kind == expected.kind


def test_any_text_is_no_constraint() -> None:
    assert of(None) is None
    assert of({"type": "text"}) is None


def test_what_is_told_gives_the_same_again() -> None:
    for given in ({"json": SCHEMA, "disable_any_whitespace": True}, {"regex": "ä"}, {"choice": ["x", "y"]}):
        found = of(given)
        assert found is not None
        assert of(json.loads(str(found))) == found
        assert of(found) is found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "this holds none of them"),
        (
            {"regex": "a", "json": SCHEMA},
            "takes one of json, json_object, regex, choice, grammar, rule, not json and regex together",
        ),
        ({"regexp": "a"}, "holds 'regexp'; did you mean regex?"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": 7}, "must be text, not 7"),
        ({"choice": []}, "list of texts that are not empty"),
        ({"choice": ["a", ""]}, "list of texts that are not empty"),
        ({"choice": ["a", 3]}, "list of texts that are not empty"),
        ({"grammar": "start: foo"}, 'unknown name: "foo"'),
        ({"grammar": 3}, "Lark's or GBNF's form"),
        ({"grammar": "root ::= ("}, "in its GBNF grammar"),
        ({"json": "{"}, "no JSON"),
        ({"json": {"type": "odd"}}, "odd"),
        ({"json": {"type": "string", "format": "foo"}}, "Unknown format: foo"),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum .5. is greater than maximum .3."),
        ({"json_object": "yes"}, "json_object, which must be true, not 'yes'"),
        (
            {"regex": "a", "disable_any_whitespace": True},
            "holds disable_any_whitespace, which acts only together with json, not with regex",
        ),
        ({"type": "xml"}, "type 'xml'; it may be text, json_object or json_schema"),
        ({"type": "json_schema"}, "needs a schema in json_schema"),
        ({"type": "json_schema", "json_schema": 3}, "needs a schema in json_schema"),
        ("a+", "takes an object such as .*not 'a.'"),
        (test_any_text_is_no_constraint, "takes an object such as"),
        (Callable[[int], int], "no JSON schema"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(given: Any, message: str) -> None:
    with pytest.raises(BadSetting, match=message) as caught:
        of(given)
    told = str(caught.value)
    assert told.startswith("structured_outputs ")
    assert "\n" not in told
    assert told.endswith((".", "?"))


def test_what_the_engine_says_is_told_without_its_pictures() -> None:
    for given, told in (
        ({"grammar": "start: foo"}, 'at 1(8): unknown name: "foo"'),
        ({"regex": "(a"}, 'at 1(8): invalid regex "(a" (in regex): regex parse error: (a error: unclosed group'),
    ):
        with pytest.raises(BadSetting) as caught:
            of(given)
        assert str(caught.value) == f"structured_outputs cannot be kept to: {told} (in its {next(iter(given))})."


def test_options_of_json_act() -> None:
    for option in ({"disable_any_whitespace": True}, {"whitespace_pattern": " "}):
        assert of({"json": SCHEMA, **option}) != of({"json": SCHEMA})
    inner = {"type": "object", "properties": {}}
    opened = {"type": "object", "properties": {"a": {"type": "array", "items": inner}}}
    closed_inner = {**inner, "additionalProperties": False}
    closed = {**opened, "properties": {"a": {"type": "array", "items": closed_inner}}, "additionalProperties": False}
    either, closed_either = {"anyOf": [inner, {"type": "null"}]}, {"anyOf": [closed_inner, {"type": "null"}]}
    explicit = {**opened, "properties": {}, "additionalProperties": True}
    option = {"disable_additional_properties": True}
    for given, expected in ((opened, closed), (either, closed_either), (explicit, explicit)):
        found, same = of({"json": given, **option}), of({"json": expected})
        assert found is not None
        assert same is not None
        assert found.grammar == same.grammar


def test_the_command_line_gives_json() -> None:
    kind = Constraints()
    assert kind.check("structured_outputs", kind.read('{"regex": "a+"}'), 10) == of({"regex": "a+"})
    with pytest.raises(BadSetting, match="takes an object such as"):
        kind.check("structured_outputs", kind.read("a+"), 10)
