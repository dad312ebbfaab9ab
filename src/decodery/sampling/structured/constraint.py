"""A constraint as a user gives it, in the words of OpenAI, vLLM or Python, turned into one form: a grammar of llguidance."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from decodery.errors import BadSetting, near
from decodery.sampling.structured.rules import FUNCTIONS, AskedRule, TextRule, rule_of

OPTIONS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")
"""What vLLM lets stand beside a JSON schema."""
UNFORCED = '%llguidance {"no_forcing": true}'
"""What tells llguidance not to choose the tokens of bytes that must come."""


@dataclass(frozen=True)
class Constraint:
    """What the whole output must be.

    kind: "json", "regex", "choice", "grammar" or "rule". given: the setting as JSON, from which the same constraint can be read
    again, but for code of this process. grammar: llguidance's own form of it; empty where there is a rule alone. rule: what is
    asked beside.
    """

    kind: str
    given: str
    grammar: str
    rule: AskedRule | None = None

    def __str__(self) -> str:
        return self.given

    @property
    def identity(self) -> str:
        """Tells it from others, in this process."""
        if self.rule is None:
            return self.grammar
        own = self.rule.told or " ".join(str(id(one)) for one in self.rule.code)
        return f"{self.grammar}\0{own}"

    @property
    def unforced(self) -> Constraint:
        """The same texts, in any tokens. Otherwise llguidance lets bytes that must come be their usual tokens alone, which is
        another set of token sequences and another mass."""
        grammar = self.grammar
        if grammar.lstrip().startswith("{"):
            [part] = json.loads(grammar)["grammars"]
            grammar = part.get("lark_grammar") or f"start: %json {json.dumps(part['json_schema'])}"
        return replace(self, grammar=f"{grammar}\n{UNFORCED}\n")


def constraint_of(name: str, value: Any) -> Constraint | None:
    """The constraint that a value of the setting `name` asks for; None where it asks for any text.

    value: OpenAI's `response_format`; an object with one of vLLM's `structured_outputs` (json, json_object, regex, choice,
    grammar, and the options of json), with a rule beside it or alone (`rules.py`); a class of Pydantic or another Python type,
    whose JSON schema is meant; a `TextRule`. Raises BadSetting, also for what the grammar engine does not read, which it names.
    """
    if value is None or isinstance(value, Constraint):
        return value
    if isinstance(value, TextRule):
        value = {"rule": value}
    if not isinstance(value, Mapping):
        value = {"json": _schema_of_type(name, value)}
    if set(value) == {"format"} and isinstance(value["format"], Mapping):  # /v1/responses has it within `text`
        value = value["format"]
    given = _words_of_openai(name, value) if "type" in value else dict(value)
    if given is None:
        return None
    kinds = [kind for kind in _READ if given.get(kind) not in (None, False)]
    known = (*_READ, "rule", *FUNCTIONS, *OPTIONS)
    others = sorted(set(given) - {*known})
    if others:
        raise BadSetting(f"{name} holds {others[0]!r}; {near(others[0], known)}")
    rule = rule_of(name, given)
    if len(kinds) > 1 or (not kinds and rule is None):
        found = f"not {' and '.join(kinds)} together" if kinds else "and this holds none of them"
        raise BadSetting(f"{name} takes one of {', '.join((*_READ, 'rule'))}, {found}.")
    beside: dict[str, Any] = {} if rule is None else {"rule": json.loads(rule.told) if rule.told else rule.called}
    if not kinds:
        if idle := [option for option in OPTIONS if given.get(option) not in (None, False)]:
            raise BadSetting(f"{name} holds {idle[0]}, which acts only together with json, not with a rule.")
        return Constraint("rule", json.dumps(beside, ensure_ascii=False), "", rule)
    [kind] = kinds
    options = {option: given[option] for option in OPTIONS if given.get(option) not in (None, False)}
    if options and not kind.startswith("json"):
        raise BadSetting(f"{name} holds {next(iter(options))}, which acts only together with json, not with {kind}.")
    if kind == "json":
        given[kind] = _schema(name, given[kind])
    grammar = _READ[kind](name, given[kind], options)
    _check(name, kind, grammar)
    told = json.dumps({kind: given[kind], **options, **beside}, ensure_ascii=False)
    return Constraint("json" if kind == "json_object" else kind, told, grammar, rule)


def _check(name: str, kind: str, grammar: str) -> None:
    """Raise BadSetting where a grammar cannot be read, or accepts nothing."""
    from llguidance import LLMatcher

    faulty, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if faulty:
        raise BadSetting(f"{name} cannot be kept to: {_one_line(messages[0])} (in its {kind}).")


def _one_line(message: str) -> str:
    """What the grammar engine says, without the picture of the place."""
    lines = [line.strip() for line in message.strip().splitlines()]
    told = [line for line in lines if line and line != "^" and "|" not in line[:6]]
    return " ".join(told).rstrip(".")


def _words_of_openai(name: str, value: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same in the words of vLLM."""
    kind = value["type"]
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    if kind == "json_schema":
        # /v1/responses has the schema beside the type, chat completions one level deeper.
        holder = value.get("json_schema", value)
        schema = holder.get("schema") if isinstance(holder, Mapping) else None
        if schema is None:
            raise BadSetting(f"{name} of the type json_schema needs a schema in json_schema.")
        return {"json": schema}
    raise BadSetting(f"{name} has the type {kind!r}; it may be text, json_object or json_schema.")


def _schema_of_type(name: str, value: Any) -> Any:
    """The JSON schema of a Python type, by Pydantic."""
    if isinstance(value, str | bytes | int | float | bool | list | tuple) or (
        callable(value) and not isinstance(value, type) and inspect.isroutine(value)
    ):
        raise BadSetting(f"{name} takes an object such as {{'regex': '[0-9]+'}} or a type, not {value!r}.")
    try:
        from pydantic import TypeAdapter
    except ImportError:
        raise BadSetting(f"{name} takes types where the package pydantic is installed; give a JSON schema.") from None
    try:
        return TypeAdapter(value).json_schema()
    except Exception as error:  # pydantic has one for every thing that it cannot describe
        raise BadSetting(f"{name} cannot be {value!r}: Pydantic finds no JSON schema for it.") from error


def _schema(name: str, given: Any) -> Any:
    """A JSON schema as an object or a bool."""
    if isinstance(given, str):
        try:
            return json.loads(given)
        except ValueError as error:
            raise BadSetting(f"{name} holds a JSON schema that is no JSON: {error}.") from None
    return given if isinstance(given, Mapping | bool) else _schema_of_type(name, given)


def _json(name: str, schema: Any, options: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher

    overrides: dict[str, Any] = {}
    if options.get("disable_any_whitespace"):
        overrides["whitespace_flexible"] = False
    if pattern := options.get("whitespace_pattern"):
        overrides["whitespace_pattern"] = pattern
    if options.get("disable_additional_properties"):
        schema = _closed(schema)
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=overrides)  # type: ignore[arg-type]


def _closed(schema: Any) -> Any:
    """A schema whose objects have no more properties than it names, unless it says otherwise itself."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    if "properties" in schema and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


def _json_object(name: str, wanted: Any, options: Mapping[str, Any]) -> str:
    if wanted is not True:
        raise BadSetting(f"{name} has json_object, which must be true, not {wanted!r}.")
    return _json(name, {"type": "object"}, options)


def _regex(name: str, pattern: Any, options: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher

    if not isinstance(pattern, str):
        raise BadSetting(f"{name} has a regex, which must be text, not {pattern!r}.")
    return LLMatcher.grammar_from_regex(pattern)


def _choice(name: str, texts: Any, options: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher

    texts = list(texts) if isinstance(texts, list | tuple) else [texts]
    if not texts or any(not isinstance(text, str) or not text for text in texts):
        raise BadSetting(f"{name} has a choice, which must be a list of texts that are not empty, not {texts!r}.")
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(text) for text in texts))


def _grammar(name: str, text: Any, options: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if not isinstance(text, str):
        raise BadSetting(f"{name} has a grammar, which must be text in Lark's or GBNF's form, not {text!r}.")
    if "::=" in text:
        try:
            text = gbnf_to_lark(text)
        except Exception as error:  # its parser raises what the text makes it
            raise BadSetting(f"{name} cannot be kept to: {_one_line(str(error))} (in its GBNF grammar).") from None
    return LLMatcher.grammar_from_lark(text)


_READ: Mapping[str, Callable[[str, Any, Mapping[str, Any]], str]] = {
    "json": _json,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}
"""By the word of vLLM: what makes the grammar."""
