"""What a setting is: its default, what it may be, what it is for, and what others call it.

Settings are fields of dataclasses that are made with `setting`, as parameters of methods are made with `parameter`. Their
check, the command line's option, the schema for a server and the table of the docs all come from that one line.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from decodery.errors import BadSetting
from decodery.plain import plain

ANY_VOCABULARY = 1 << 62
"""Stands for the size of a vocabulary while the model is not loaded yet."""


Value = TypeVar("Value")


class Speller(Protocol):
    """What must be known of a model's tokenizer to turn settings about text into settings about tokens."""

    @property
    def tokenizer(self) -> Any:
        """It."""
        ...

    @property
    def size(self) -> int:
        """How many tokens the model scores."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without special tokens around it."""
        ...

    def written(self) -> Sequence[str]:
        """The text of every token by itself."""
        ...

    def remember(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What follows from the tokenizer alone; made on first use."""
        ...


def special_ids(tokenizer: Any) -> tuple[int, ...]:
    """The tokens of a tokenizer that are no text: ends, turns of a chat, padding. None where it does not say."""
    return tuple(getattr(tokenizer, "all_special_ids", None) or ())


class ValueKind(ABC):
    """What the values of a setting are. option: their type on the command line; None: they cannot be said there."""

    option: Any = None

    def schema(self) -> Mapping[str, Any] | None:
        """The values as a JSON schema; None where JSON has no such values."""
        return None

    @abstractmethod
    def check(self, name: str, value: Any, vocabulary: int) -> Any:
        """The value as it is kept. name: of the setting; vocabulary: how many tokens there are. Raises BadSetting."""

    def read(self, given: Any) -> Any:
        """What was given on the command line, as `check` takes it."""
        return given

    def spelled(self, value: Any, speller: Speller) -> Any:
        """A value for the tokens of a model, where it is about text; else the value. Raises BadSetting."""
        return value


@dataclass(frozen=True)
class Setting:
    """A declared setting. neutral: the value that asks for nothing (of a step: the one that switches it off). aliases: its
    names in other libraries. option: its names on the command line; none: it is not there. metavar: what stands behind them."""

    name: str
    default: Any
    neutral: Any
    kind: ValueKind
    help: str
    aliases: tuple[str, ...] = ()
    option: tuple[str, ...] = ()
    metavar: str | None = None

    def convert(self, value: Any, vocabulary: int = ANY_VOCABULARY) -> Any:
        """The value as it is kept. Raises BadSetting with one sentence."""
        try:
            return self.kind.check(self.name, plain(value), vocabulary)
        except (TypeError, OverflowError):
            raise BadSetting(f"{self.name} cannot be {value!r}.") from None


_UNSAID = object()


def setting(
    default: Any,
    kind: ValueKind,
    help: str,
    *,
    neutral: Any = _UNSAID,
    aliases: tuple[str, ...] = (),
    option: tuple[str, ...] = (),
    metavar: str | None = None,
) -> Any:
    """A dataclass field that is a setting; see `Setting`. neutral: where it is not the default. default: a function gives a
    fresh one."""
    fresh: Callable[[], Any] = default if callable(default) else lambda: default
    about = {
        "neutral": neutral,
        "kind": kind,
        "help": help,
        "aliases": aliases,
        "option": option,
        "metavar": metavar,
    }
    field: Any = dataclasses.field(default_factory=fresh, metadata={"setting": about})
    return field


@functools.cache
def settings_of(cls: type[Any]) -> tuple[Setting, ...]:
    """The settings that are declared in a dataclass, in order."""
    found = []
    for field in dataclasses.fields(cls):
        about = field.metadata.get("setting")
        if about is not None:
            assert field.default_factory is not dataclasses.MISSING
            default = field.default_factory()
            neutral = default if about["neutral"] is _UNSAID else about["neutral"]
            found.append(Setting(field.name, default, **{**about, "neutral": neutral}))
    return tuple(found)


# Kinds of values


@dataclass(frozen=True)
class Real(ValueKind):
    """A finite number from low to high; open_low: low itself is not allowed."""

    low: float
    high: float = math.inf
    open_low: bool = False
    option = float

    def schema(self) -> Mapping[str, Any]:
        least = {"exclusiveMinimum": self.low} if self.open_low else {"minimum": self.low}
        return {"type": "number", **least, **({"maximum": self.high} if math.isfinite(self.high) else {})}

    def check(self, name: str, value: Any, vocabulary: int) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadSetting(f"{name} must be a finite number, not {value!r}.")
        if value < self.low or value > self.high or (self.open_low and value == self.low):
            border = "above" if self.open_low else "at least"
            top = f" and at most {self.high:g}" if math.isfinite(self.high) else ""
            raise BadSetting(f"{name} must be {border} {self.low:g}{top}, not {value!r}.")
        return float(value)


@dataclass(frozen=True)
class Whole(ValueKind):
    """A whole number from low to high."""

    low: int
    high: int | None = None
    option = int

    def schema(self) -> Mapping[str, Any]:
        return {"type": "integer", "minimum": self.low, **({} if self.high is None else {"maximum": self.high})}

    def check(self, name: str, value: Any, vocabulary: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadSetting(f"{name} must be a whole number, not {value!r}.")
        if value < self.low or (self.high is not None and value > self.high):
            top = f" and at most {self.high}" if self.high is not None else ""
            raise BadSetting(f"{name} must be at least {self.low}{top}, not {value}.")
        return value


@dataclass(frozen=True)
class Optional(ValueKind):
    """Another kind, or None."""

    kind: ValueKind

    @property
    def option(self) -> Any:
        return self.kind.option

    def schema(self) -> Mapping[str, Any] | None:
        own = self.kind.schema()
        return None if own is None else {"anyOf": [*own.get("anyOf", [own]), {"type": "null"}]}

    def check(self, name: str, value: Any, vocabulary: int) -> Any:
        return None if value is None else self.kind.check(name, value, vocabulary)


class Flag(ValueKind):
    """True or False."""

    option = bool

    def schema(self) -> Mapping[str, Any]:
        return {"type": "boolean"}

    def check(self, name: str, value: Any, vocabulary: int) -> bool:
        if not isinstance(value, bool):
            raise BadSetting(f"{name} must be True or False, not {value!r}.")
        return value


class Text(ValueKind):
    """A string."""

    option = str

    def schema(self) -> Mapping[str, Any]:
        return {"type": "string"}

    def check(self, name: str, value: Any, vocabulary: int) -> str:
        if not isinstance(value, str):
            raise BadSetting(f"{name} must be a string, not {value!r}.")
        return value


@dataclass(frozen=True)
class OneOf(ValueKind):
    """One of these words."""

    words: tuple[str, ...]
    option = str

    def schema(self) -> Mapping[str, Any]:
        return {"type": "string", "enum": list(self.words)}

    def check(self, name: str, value: Any, vocabulary: int) -> str:
        if value not in self.words:
            raise BadSetting(f"{name} must be one of {', '.join(self.words)}, not {value!r}.")
        return str(value)


class Texts(ValueKind):
    """One or more strings that are not empty, or none."""

    option = list[str]

    def schema(self) -> Mapping[str, Any]:
        return {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}},
            ]
        }

    def check(self, name: str, value: Any, vocabulary: int) -> tuple[str, ...]:
        strings = (value,) if isinstance(value, str) else tuple(() if value is None else value)
        if isinstance(value, Mapping) or any(not isinstance(text, str) or not text for text in strings):
            raise BadSetting(f"{name} must be one or more non-empty strings, not {value!r}.")
        for text in strings:
            if any("\ud800" <= sign <= "\udfff" for sign in text):
                raise BadSetting(
                    f"{name} must be valid Unicode, which {text!r} is not: it holds half a surrogate pair."
                )
        return strings


def check_token(name: str, value: Any, vocabulary: int) -> int:
    """A token id. Raises BadSetting."""
    value = plain(value)
    try:
        if isinstance(value, float | bool):
            raise ValueError
        token = int(value)  # keys of JSON objects are strings
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise BadSetting(f"{name} needs token ids, which are whole numbers, not {value!r}.") from None
    if not 0 <= token < vocabulary:
        raise BadSetting(f"{name} names token {value!r}, but the model's tokens are 0 to {vocabulary - 1}.")
    return token


@dataclass(frozen=True)
class TokenIds(ValueKind):
    """At least so many token ids."""

    least: int = 0
    option = list[int]

    def schema(self) -> Mapping[str, Any]:
        listed = {"type": "array", "items": {"type": "integer", "minimum": 0}}
        return {"anyOf": [{"type": "integer", "minimum": 0}, listed | ({"minItems": self.least} if self.least else {})]}

    def check(self, name: str, value: Any, vocabulary: int) -> tuple[int, ...]:
        if isinstance(value, str | Mapping):
            raise BadSetting(f"{name} needs token ids, which are whole numbers, not {value!r}.")
        ids = (value,) if isinstance(value, int) else tuple(() if value is None else value)
        if len(ids) < self.least:
            raise BadSetting(f"{name} needs at least {self.least} token id, not {value!r}.")
        return tuple(check_token(name, token, vocabulary) for token in ids)


class Callables(ValueKind):
    """Functions (input_ids, scores), as transformers has them."""

    def check(self, name: str, value: Any, vocabulary: int) -> tuple[Callable[..., Any], ...]:
        items = (value,) if callable(value) and not isinstance(value, list | tuple) else tuple(value or ())
        if any(not callable(item) for item in items):
            raise BadSetting(f"{name} must be callables (input_ids, scores), not {value!r}.")
        return items
