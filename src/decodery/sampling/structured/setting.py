"""The setting that says what an output must be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from decodery.sampling.settings import ValueKind
from decodery.sampling.structured.constraint import Constraint, constraint_of
from decodery.sampling.structured.grammars import Compiled, Grammars
from decodery.sampling.structured.ruled import compiled
from decodery.sampling.structured.rules import REGISTRY

if TYPE_CHECKING:
    from decodery.sampling.settings import Speller


class Constraints(ValueKind):
    """A constraint on the output, or none."""

    option = str

    def schema(self) -> Mapping[str, Any]:
        return {
            "type": "object",
            "properties": {
                "json": {"type": ["object", "string", "boolean"]},
                "json_object": {"type": "boolean"},
                "regex": {"type": "string"},
                "choice": {"type": "array", "items": {"type": "string"}},
                "grammar": {"type": "string"},
                "rule": REGISTRY.schema(),
                "disable_any_whitespace": {"type": "boolean"},
                "disable_additional_properties": {"type": "boolean"},
                "whitespace_pattern": {"type": "string"},
                "type": {"type": "string", "enum": ["text", "json_object", "json_schema"]},
                "json_schema": {"type": "object"},
            },
        }

    def check(self, name: str, value: Any, vocabulary: int) -> Constraint | None:
        return constraint_of(name, value)

    def read(self, given: Any) -> Any:
        try:
            return json.loads(given)
        except ValueError:
            return given

    def spelled(self, value: Constraint | Compiled | None, speller: Speller) -> Compiled | None:
        """The constraint for the tokens of a model. Raises BadSetting where no token of it could begin it."""
        if not isinstance(value, Constraint):
            return value
        grammars = speller.remember("grammars", lambda: Grammars.of(speller))
        return compiled(grammars, value)
