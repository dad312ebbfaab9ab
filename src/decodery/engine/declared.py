"""What is written as name(key=value): frozen dataclasses whose fields are declared parameters, such as methods and targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from decodery.engine.parameters import Parameter, checked, idle, idle_sentence, parameters_of
from decodery.errors import BadParameter, near
from decodery.spec import parse_spec as parse_spec
from decodery.spec import written


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
            f"{p.name}={written(value, p.type)}"
            for p in self.parameters()
            if (value := getattr(self, p.name)) != p.default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


_PARAMETERS: dict[type, tuple[Parameter, ...]] = {}
"""What was found of each class: resolving type hints is slow, and every request asks for the parameters of its method."""


Made = TypeVar("Made", bound="Declared")


def build(cls: type[Made], values: Mapping[str, Any]) -> Made:
    """An object of class `cls` with these parameters. Raises BadParameter for unknown names."""
    known = {item.name for item in cls.parameters()}
    for name in values:
        if name not in known:
            hint = near(name, known) if known else "it has none."
            raise BadParameter(f"{cls.name} has no parameter {name!r}; {hint}")
    return cls(**values)
