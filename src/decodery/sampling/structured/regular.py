"""Constraints as regular languages: what canvases are held to, whose texts are not written from left to right.

Regular expressions and choices are regular as they stand. Grammars and JSON schemas nest; each level of nesting is written out,
as deep as the expression stays short, so that what matches is in the language, and deeper texts are left out.
"""

from __future__ import annotations

import json

from decodery.errors import Refused
from decodery.sampling.structured.constraint import Constraint
from decodery.sampling.structured.expressions import Expression, literal
from decodery.sampling.structured.schemas import schema_expression
from decodery.sampling.structured.unrolling import grammar_expression


def expression_of(constraint: Constraint) -> Expression:
    """The texts of a constraint. Raises Refused for what is not regular to any depth, or is not read, which it names."""
    if constraint.rule is not None:
        raise Refused(
            "structured_outputs cannot be kept to on a canvas, which is not filled from left to right: "
            f"{constraint.rule.called} is asked of beginnings of a text."
        )
    given = json.loads(constraint.given)
    if constraint.kind == "regex":
        return Expression(given["regex"])
    if constraint.kind == "choice":
        texts = given["choice"] if isinstance(given["choice"], list) else [given["choice"]]
        return Expression("|".join(literal(text) for text in texts))
    if constraint.kind == "grammar":
        return grammar_expression(given["grammar"])
    return schema_expression(given)
