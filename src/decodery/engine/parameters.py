"""The parameters of methods: how a method declares them, which values are allowed, and which of them act at all."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from decodery.errors import BadParameter
from decodery.plain import plain


@dataclass(frozen=True)
class Where:
    """A condition on the value of another parameter that no list of values says. says: as in "where drafts {says}"."""

    holds: Callable[[Any], bool]
    says: str


GIVEN = Where(lambda value: value not in (None, ""), "is given")
"""The other parameter names something."""

Only: TypeAlias = "Mapping[str, Any]"
"""Other parameter -> the value that it must have, a tuple of such values, or a `Where`."""


def not_one_of(*values: Any) -> Where:
    """The other parameter has none of these values."""
    words = [_word(value) for value in values]
    return Where(lambda value: value not in values, f"is not {' or '.join(words)}")


def above(least: float) -> Where:
    """The other parameter is greater than this."""
    return Where(lambda value: value is not None and value > least, f"is above {least:g}")


def parameter(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    auto: str = "",
    only: Only | tuple[Only, ...] = (),
    names: str = "",
) -> Any:
    """A dataclass field that is a parameter of a method.

    help: one line. low, high: inclusive range. choices: allowed words. auto: what None (written "auto") means. only: the values
    of other parameters beside which it acts, or several such alternatives; beside others every value but the default is
    refused. names: what a value other than the default names beyond itself: a "file" of this machine, or another "method".
    """
    alternatives = (only,) if isinstance(only, Mapping) else tuple(only)
    meta = {
        "help": help,
        "low": low,
        "high": high,
        "choices": choices,
        "auto": auto,
        "only": alternatives,
        "names": names,
    }
    return dataclasses.field(default=default, metadata=meta)


def unused(default: Any) -> Any:
    """A dataclass field in place of a base's parameter that has nothing to act on in this class, and so is none of its own."""
    return dataclasses.field(default=default, metadata={"unused": True})


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method, as the registry lists it. only: the alternatives beside which it acts; none: always."""

    name: str
    type: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    auto: str = ""
    only: tuple[Only, ...] = ()
    names: str = ""

    @property
    def range(self) -> str:
        """The allowed values, for people."""
        if self.choices:
            return " | ".join(self.choices)
        if self.low is None and self.high is None:
            return ""
        low = "" if self.low is None else f"{self.low:g}"
        return f"{low}..{'' if self.high is None else f'{self.high:g}'}"

    @property
    def condition(self) -> str:
        """When it acts, as "only with rule=threshold"; empty where it always does."""
        return ", or ".join(" and ".join(_condition(*item) for item in one.items()) for one in self.only)

    @property
    def meaning(self) -> str:
        """Its help, what auto means, and when it acts."""
        condition = f"only {self.condition}" if self.only else ""
        return "; ".join(part for part in (self.help, self.auto and f"auto: {self.auto}", condition) if part)

    def acts(self, values: Mapping[str, Any]) -> bool:
        """Whether it does anything beside these values of the others."""
        return not self.only or any(all(_holds(c, values[name]) for name, c in one.items()) for one in self.only)


def _holds(condition: Any, value: Any) -> bool:
    if isinstance(condition, Where):
        return condition.holds(value)
    return value in condition if isinstance(condition, tuple) else bool(value == condition)


def _word(value: Any) -> str:
    return "auto" if value is None else str(value)


def _condition(name: str, condition: Any) -> str:
    if isinstance(condition, Where):
        return f"where {name} {condition.says}"
    if condition == "":
        return f"without {name}"
    words = [_word(value) for value in (condition if isinstance(condition, tuple) else (condition,))]
    return f"with {name}={' or '.join(words)}"


def parameters_of(cls: type) -> tuple[Parameter, ...]:
    """The parameters that a dataclass declares, in order, without those that a subclass's choices have left without effect."""
    hints = typing.get_type_hints(cls)
    every = {
        field.name: Parameter(field.name, _type_name(hints[field.name]), field.default, **field.metadata)
        for field in dataclasses.fields(cls)
        if not field.metadata.get("unused")
    }
    return tuple(item for item in every.values() if _can_act(item, every))


def _can_act(item: Parameter, every: Mapping[str, Parameter]) -> bool:
    """Whether the choices of the others, where they have some, leave it any effect."""

    def possible(name: str, condition: Any) -> bool:
        choices = every[name].choices if name in every else ()
        return not choices or any(_holds(condition, choice) for choice in choices)

    return not item.only or any(all(possible(*condition) for condition in one.items()) for one in item.only)


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        names = [_type_name(arg) for arg in inner]
        return " | ".join([*names, "auto"] if len(inner) < len(typing.get_args(hint)) else names)
    return hint.__name__ if isinstance(hint, type) else str(hint)


TYPES: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "bool": bool, "str": str}


def checked(method: str, item: Parameter, value: Any) -> Any:
    """The value of a parameter as its type has it. Raises BadParameter where type, range or choices do not allow it."""
    names = item.type.split(" | ")
    value = plain(value)
    if value is None and "none" in item.choices:
        return "none"  # written as a bare word, it is read as Python's None
    if value is None and "auto" in names:
        return None
    if value == "auto" and "auto" in names and "str" not in names:
        return None
    matches = [n for n in names if n != "auto" and isinstance(value, TYPES[n])]
    if isinstance(value, bool) and "bool" not in names:
        matches = []
    if not matches:
        raise BadParameter(f"{method}: {item.name} must be {' or '.join(names)}, not {value!r} ({item.help}).")
    if item.choices and value not in item.choices:
        raise BadParameter(f"{method}: {item.name} must be one of {', '.join(item.choices)}, not {value!r}.")
    if isinstance(value, int | float) and not isinstance(value, bool):
        below = item.low is not None and value < item.low
        above = item.high is not None and value > item.high
        if below or above or value != value:
            raise BadParameter(f"{method}: {item.name} must lie in {item.range}, not {value!r} ({item.help}).")
    return float(value) if matches == ["float"] else value


def idle(item: Parameter, values: Mapping[str, Any]) -> bool:
    """Whether a parameter was given a value of its own that does nothing beside the others."""
    return values[item.name] != item.default and not item.acts(values)


def idle_sentence(method: str, item: Parameter, values: Mapping[str, Any]) -> str:
    """Why it does nothing: what it needs, and what stands there."""
    failing = {name: values[name] for one in item.only for name, c in one.items() if not _holds(c, values[name])}
    here = " and ".join(f"{name}={_word(value) or repr(value)}" for name, value in failing.items())
    given = f"{item.name}={_word(values[item.name])}"
    return f"{method}: {given} does something only {item.condition}, and here it is {here}."
