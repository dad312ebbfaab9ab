"""Constraints that lead to what has no end. llguidance would look for the end of what must come there for ever."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from decodery.errors import BadSetting, Refused
from decodery.sampling.structured.constraint import Constraint
from decodery.sampling.structured.schemas import referred

NESTING = ("object", "array")


def check_ends(constraint: Constraint) -> None:
    """Raise BadSetting where a grammar has a rule, or a schema is one, that no text comes to the end of. Grammars that only
    llguidance reads, and what it alone knows of schemas, are taken as they are."""
    given = json.loads(constraint.given)
    if constraint.kind == "grammar":
        # lark takes a while to import, and canvases need it as well.
        from decodery.sampling.structured.unrolling import ContextFreeGrammar

        try:
            endless = ContextFreeGrammar.read(given["grammar"]).endless()
        except Refused:
            return
        if endless:
            raise BadSetting(
                f"structured_outputs cannot be kept to: no text comes to the end of the rule {endless[0]}; give it an "
                "alternative that does not lead back to it."
            )
    elif constraint.kind == "json" and not _ends(given["json"], given["json"], frozenset()):
        raise BadSetting(
            "structured_outputs cannot be kept to: the schema requires itself within itself, so no document has an end; let a "
            "property that leads back be left out, or be null."
        )


def _ends(schema: Any, whole: Any, followed: frozenset[str]) -> bool:
    """Whether some document of a part of a schema has an end. followed: references that lead here; where one comes again, a
    document that has an end has one without it."""
    if not isinstance(schema, Mapping) or "enum" in schema or "const" in schema:
        return True
    if isinstance(reference := schema.get("$ref"), str):
        if reference in followed:
            return False
        try:
            part = referred(whole, reference)
        except LookupError:
            part = True
        if not _ends(part, whole, followed | {reference}):
            return False
    if schema.get("anyOf") and not any(_ends(part, whole, followed) for part in schema["anyOf"]):
        return False
    if not all(_ends(part, whole, followed) for part in schema.get("allOf", ())):
        return False
    kinds = schema.get("type", ())
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if kinds - set(NESTING) or not kinds:  # without a type, what is said of objects leaves numbers alone
        return True
    parts: dict[str, list[Any]] = {}
    if "object" in kinds:
        parts["object"] = [schema.get("properties", {}).get(name, True) for name in schema.get("required", ())]
    if "array" in kinds:
        least = schema.get("minItems", 0)
        first = list(schema.get("prefixItems", ()))[:least]
        parts["array"] = first + ([schema.get("items", True)] if least > len(first) else [])
    return any(all(_ends(part, whole, followed) for part in kind) for kind in parts.values())
