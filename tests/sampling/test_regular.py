"""Constraints as regular expressions: what matches is in the language, by llguidance and by Python's json."""

from __future__ import annotations

import json
import random
import re

import pytest
from letter_constraints import over_letters

from decodery.errors import BadSetting, Refused
from decodery.sampling.structured import automata
from decodery.sampling.structured.automata import ByteAutomaton, TokenAutomaton
from decodery.sampling.structured.constraint import constraint_of
from decodery.sampling.structured.expressions import Expression
from decodery.sampling.structured.regular import expression_of

BYTES = tuple(chr(sign) for sign in range(32, 127))
"""A vocabulary of signs, with which llguidance is asked about a text."""


def expression(**given):
    constraint = constraint_of("structured_outputs", given)
    assert constraint is not None
    return expression_of(constraint)


def some_texts(pattern, count=40, most=60, seed=0):
    """Texts of an expression, by a walk at random that turns to the nearest end when it gets long."""
    automaton = ByteAutomaton.of(pattern)
    states = range(len(automaton.moves) - 1)
    steps_of = {state: [(byte, int(automaton.moves[state, byte])) for byte in range(32, 127)] for state in states}
    left = {state: 0 for state in states if automaton.accepting[state]}
    while reached := {
        state: 1 + min(left[after] for _, after in steps_of[state] if after in left)
        for state in states
        if state not in left and any(after in left for _, after in steps_of[state])
    }:
        left |= reached
    chance = random.Random(seed)
    for _ in range(count):
        state, text = 0, ""
        while True:
            if automaton.accepting[state] and (len(text) > most or chance.random() < 0.3):
                break
            steps = [(byte, after) for byte, after in steps_of[state] if after in left]
            if len(text) > most:
                steps = [step for step in steps if left[step[1]] < left[state]]
            if not steps:
                break
            byte, state = chance.choice(steps)
            text += chr(byte)
        assert automaton.accepting[state]
        yield text


def llguidance_accepts(text, **given):
    compiled = over_letters(len(BYTES), BYTES, **given).unforced
    return compiled.may_end(tuple(BYTES.index(sign) for sign in text))


GRAMMARS = {
    "nested": 'start: "(" start ")" start | "x"?',
    "sums": 'start: sum\nsum: sum "+" part | part\npart: part "*" atom | atom\natom: /[0-9]/ | "(" sum ")"',
    "ignored": 'start: item ("," item)*\nitem: WORD | "[" start "]"\nWORD: /[a-z]+/\n%ignore " "',
    "gbnf": 'root ::= "(" inner ")" | [0-9]+\ninner ::= root | "\\"a" inner?',
    "mutual": 'start: "a" start | "b" x\nx: "c" start | "d" x | "e"',
}
NESTING = {"nested": 6, "sums": 3, "ignored": 8, "gbnf": 8, "mutual": None}


@pytest.mark.parametrize("name", GRAMMARS)
def test_what_a_grammars_expression_matches_is_a_sentence(name):
    found = expression(grammar=GRAMMARS[name])
    assert (found.nesting is None) == (NESTING[name] is None)
    texts = [*some_texts(found.pattern)]
    assert len({*texts}) > 10
    for text in texts:
        assert llguidance_accepts(text, grammar=GRAMMARS[name]), text


def test_nesting_is_written_out_as_deep_as_it_says():
    found = expression(grammar='start: "(" start ")" | "x"')
    assert found.nesting is not None
    match = re.compile(found.pattern.replace("\\x{28}", r"\(").replace("\\x{29}", r"\)"))
    for depth in range(found.nesting + 3):
        text = "(" * depth + "x" + ")" * depth
        assert bool(match.fullmatch(text)) == (depth <= found.nesting), depth


SCHEMAS = (
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {}}, "required": ["b"]},
    {"type": "object"},
    {"type": "object", "additionalProperties": {"type": "boolean"}},
    {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
    {
        "type": "array",
        "prefixItems": [{"type": "null"}, {"type": "integer"}],
        "items": {"type": "boolean"},
        "minItems": 1,
    },
    {"type": "array", "prefixItems": [{"type": "null"}], "items": False},
    {"enum": ["a", 1.5, None, {"x": [1, "é"]}]},
    {"const": 'q"'},
    {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": -2, "exclusiveMaximum": 3}]},
    {"oneOf": [{"type": "null"}, {"type": "boolean"}]},
    {"type": ["string", "null"], "minLength": 2, "maxLength": 3},
    {"type": "string", "pattern": "^[a-c]{2}-[0-9]$"},
    {"type": "string", "pattern": "ab"},
    {"type": "string", "format": "uuid"},
    {"type": "integer", "minimum": 0},
    {
        "$ref": "#/$defs/node",
        "$defs": {"node": {"type": "object", "properties": {"v": {"type": "null"}, "next": {"$ref": "#/$defs/node"}}}},
    },
)


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_what_a_schemas_expression_matches_is_a_document_of_it(schema):
    found = expression(json=schema)
    texts = [*some_texts(found.pattern)]
    for text in texts:
        json.loads(text)
    for text in texts[:15]:
        assert llguidance_accepts(text, json=schema), text


def test_options_of_json():
    tight = expression(json={"type": "array", "items": {"type": "null"}}, disable_any_whitespace=True)
    assert all(" " not in text for text in some_texts(tight.pattern))
    own = expression(json={"type": "array", "items": {"type": "null"}}, whitespace_pattern=" ")
    assert all(text == "[  ]" or text.startswith("[ ") for text in some_texts(own.pattern))
    assert expression(json_object=True) == expression(json={"type": "object"})


def test_a_language_without_texts_is_refused():
    with pytest.raises(BadSetting, match="accepts no text that has an end"):
        expression(grammar='start: "a" start "b" | "a" start')


REFUSED = {
    "the format 'ipv4'": {"json": {"type": "string", "format": "ipv4"}},
    "an integer of at least 3, without": {"json": {"type": "integer", "minimum": 3}},
    "at least 1 and at most 1000": {"json": {"type": "integer", "minimum": 3, "maximum": 3000}},
    "oneOf of parts": {"json": {"oneOf": [{"const": 1}, {"type": "string"}]}},
    "allOf": {"json": {"allOf": [{"type": "null"}]}},
    "minimum": {"json": {"type": "number", "minimum": 3}},
    "minProperties": {"json": {"type": "object", "minProperties": 1}},
    "signs come that are escaped": {"json": {"type": "string", "pattern": "a.b"}},
    "anchors": {"json": {"type": "string", "pattern": "^a|b$"}},
    "more than one of pattern": {"json": {"type": "string", "pattern": "a", "maxLength": 2}},
    'required "a"': {"json": {"type": "object", "required": ["a"]}},
    "lark does not read its grammar": {"grammar": 'start: "a" %json {"type": "null"}'},
    "states": {"regex": "(a{100}){100}"},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_not_kept_to_is_refused_by_its_name(said):
    with pytest.raises(Refused, match=re.escape(said)):
        ByteAutomaton.of(expression(**REFUSED[said]).pattern)


def test_what_outlines_core_does_not_read_is_refused():
    with pytest.raises(Refused, match=r"no automaton can be made of it: .*word boundaries"):
        ByteAutomaton.of(r"a\b")


def test_tokens_lead_where_their_bytes_lead():
    said = [b"a", b"ab", b"b", b"", b"\xc3", b"\xa9", "é".encode(), b"ba"]
    table = TokenAutomaton.of(Expression("(ab|é)*"), said)
    automaton = ByteAutomaton.of("(ab|é)*")
    dead = len(automaton.moves) - 1
    for token, one in enumerate(said):
        for state in range(dead):
            expected = state if one else dead
            for byte in one:
                expected = int(automaton.moves[expected, byte])
            assert table.moves[state, table.kinds[token]] == expected
    assert table.kinds[4] != table.kinds[5]
    assert (table.moves[dead] == dead).all()


def test_texts_that_begin_with_shorter_ones_are_there():
    automaton = ByteAutomaton.of("a|ab|(cd)*")
    for text, accepted in {"a": True, "ab": True, "": True, "cd": True, "cdcd": True, "c": False, "b": False}.items():
        state = 0
        for byte in text.encode():
            state = int(automaton.moves[state, byte])
        assert bool(automaton.accepting[state]) == accepted, text


def test_what_takes_too_long_or_too_much_is_refused(monkeypatch):
    with pytest.raises(Refused, match=r"has \d+ states; at most 4096"):
        ByteAutomaton.of("(a|b)*a(a|b){12}")
    monkeypatch.setattr(automata, "MOST_SECONDS", 0.01)
    with pytest.raises(Refused, match=r"takes more than 0\.01 seconds"):
        ByteAutomaton.of("a")
