"""What is written as name(key=value): frozen dataclasses whose fields are declared parameters, such as methods and targets."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from decodery.engine.parameters import Parameter, checked, idle, idle_sentence, parameters_of
from decodery.errors import BadParameter, near


@dataclass(frozen=True)
class Declared:
    """Base of what is written as name(key=value). Fields are made with `parameter`."""

    name: ClassVar[str]

    def check(self) -> None:
        """Raise BadParameter where values that are right by themselves do not go together. Called when the object is
        made, of each class in its line, the base first: none of them calls another."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if cls.__post_init__ is not Declared.__post_init__:
            raise TypeError(f"{cls.__name__} must check its parameters in check(), not in __post_init__")

    def __post_init__(self) -> None:
        every = {field.name: field.default for field in dataclasses.fields(self)}
        for item in self.parameters():
            every[item.name] = checked(self.name, item, getattr(self, item.name))
            object.__setattr__(self, item.name, every[item.name])
        known = {item.name: item for item in self.parameters()}
        for name, default in every.items():
            if name not in known and getattr(self, name) != default:
                raise BadParameter(f"{self.name} has no parameter {name!r}; {near(name, known)}")
        for item in self.parameters():
            if idle(item, every):
                raise BadParameter(idle_sentence(self.name, item, every))
        for cls in reversed(type(self).__mro__):
            if "check" in vars(cls):
                vars(cls)["check"](self)

    def varied(self, **values: Any) -> Self:
        """The same with other values; what does nothing beside them any more has its default again."""
        mine = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | values
        mine |= {item.name: checked(self.name, item, mine[item.name]) for item in self.parameters()}
        while left := [item for item in self.parameters() if idle(item, mine)]:
            mine |= {item.name: item.default for item in left}
        return type(self)(**mine)

    @classmethod
    def parameters(cls) -> tuple[Parameter, ...]:
        """The parameters, in order of declaration."""
        if cls not in _PARAMETERS:
            _PARAMETERS[cls] = parameters_of(cls)
        return _PARAMETERS[cls]

    def spec(self) -> str:
        """As one writes it: its name and the parameters that differ from their defaults."""
        changed = [
            f"{p.name}={_written(value, p.type)}"
            for p in self.parameters()
            if (value := getattr(self, p.name)) != p.default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


_PARAMETERS: dict[type, tuple[Parameter, ...]] = {}
"""What was found of each class: resolving type hints is slow, and every request asks for the parameters of its method."""


_PARTS = re.compile(r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,'"])+""")
"""What stands between the commas of a spec; a comma within quotes does not count."""
_BARE = re.compile(r"[\w./:~@+-]+")
"""A word that needs no quotes: smollm2-135m, owner/name, ./folder."""
_WORDS = {"true": True, "false": False, "none": None, "inf": math.inf, "-inf": -math.inf}


def parse_spec(text: str) -> tuple[str, dict[str, Any]]:
    """Split "name" or "name(key=value, …)". Values are Python literals or bare words; raises BadParameter."""
    name, bracket, rest = text.strip().partition("(")
    name = name.strip()
    if not bracket:
        return name, {}
    unreadable = BadParameter(f"cannot read {text!r}; parameters are written as name(key=value, key=value).")
    inside = rest[:-1].strip().removesuffix(",")
    parts = _PARTS.findall(inside)
    if not rest.endswith(")") or ",".join(parts) != inside:
        raise unreadable
    values: dict[str, Any] = {}
    for part in parts:
        key, sign, word = part.partition("=")
        key, word = key.strip(), word.strip()
        if not sign or not word or not key.isidentifier():
            raise unreadable
        if key in values:
            raise BadParameter(f"{text!r} gives {key} twice.")
        values[key] = _literal(text, word)
    return name, values


def _literal(text: str, word: str) -> Any:
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        if not _BARE.fullmatch(word):
            raise BadParameter(f"cannot read the value {word!r} in {text!r}; quote it if it is a name.") from None
        return word


def _written(value: Any, kind: str) -> str:
    """A value of a parameter of this type as `parse_spec` reads it."""
    if value is None:  # where strings are allowed, auto is one
        return "None" if "str" in kind.split(" | ") else "auto"
    if not isinstance(value, str):
        return str(value)
    plain = _BARE.fullmatch(value) and _literal(value, value) == value
    return value if plain else repr(value)


Made = TypeVar("Made", bound="Declared")


def build(cls: type[Made], values: Mapping[str, Any]) -> Made:
    """An object of class `cls` with these parameters. Raises BadParameter for unknown names."""
    known = {item.name for item in cls.parameters()}
    for name in values:
        if name not in known:
            hint = near(name, known) if known else "it has none."
            raise BadParameter(f"{cls.name} has no parameter {name!r}; {hint}")
    return cls(**values)
