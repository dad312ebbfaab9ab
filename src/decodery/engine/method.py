"""What a decoding method is, and how it declares itself.

A method is a frozen dataclass: its fields are its parameters, its class attributes say what it is called, where it was
published and what it guarantees. `decode` is the method itself: a coroutine that yields `Forward`s and is sent `Scores`.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from decodery.engine.needs import NEXT_TOKENS, Requirement
from decodery.engine.parameters import Parameter, checked, idle, idle_sentence, parameters_of
from decodery.engine.parameters import parameter as parameter
from decodery.errors import BadParameter, Refused, near

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.engine.settings import Settings
    from decodery.models.forward import Forward
    from decodery.models.scorer import Scorer

Decoding: TypeAlias = "Generator[Forward | tuple[Forward, ...], Any, None]"
"""What `decode` returns: yields one forward or a tuple of them, and is sent the scores of each."""


class Exactness(enum.StrEnum):
    """What a method promises about its output. `decodery check` decides it by experiment."""

    IDENTICAL_TO_PLAIN = "identical-to-plain"
    """The very tokens of plain decoding, greedy or sampled at the same seed."""
    IDENTICAL_TO_SAMPLING = "identical-to-sampling"
    """The output has exactly the law of plain sampling from the processed target, and greedy output is identical."""
    GREEDY_IDENTICAL = "greedy-identical"
    """Greedy output is identical to plain greedy decoding; nothing is promised of sampled output."""
    APPROXIMATE = "approximate"
    """Close to the target's law, within what the method's page states."""
    IDENTICAL_TO_STATIC = "identical-to-static"
    """Of a decoder of canvases: tokens and order of commits are those of the static decoder that it speeds up."""
    QUALITY_CHANGING = "quality-changing"
    """Another law on purpose."""

    @property
    def lossless(self) -> bool:
        """Whether greedy output is promised to equal plain decoding's."""
        return self.same_law or self is Exactness.GREEDY_IDENTICAL

    @property
    def same_law(self) -> bool:
        """Whether sampled output is promised to have plain sampling's law."""
        return self in (Exactness.IDENTICAL_TO_PLAIN, Exactness.IDENTICAL_TO_SAMPLING)

    @property
    def same_tokens(self) -> bool:
        """Whether sampled output is promised to equal plain sampling's at the same seed."""
        return self is Exactness.IDENTICAL_TO_PLAIN


@dataclass(frozen=True)
class Method(ABC):
    """Base of all decoding methods.

    Subclasses are frozen dataclasses (their fields are made with `parameter`) and set the class attributes below.
    A method object holds no state of a request; what lives longer is kept in the request's memory.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    """Authors, title, year and identifier of the source."""
    exactness: ClassVar[Exactness]
    family: ClassVar[str]
    """Room of the method: "sampling", "speculative", "diffusion", …"""
    needs: ClassVar[tuple[Requirement, ...]] = (NEXT_TOKENS,)
    """What must be there for it to run."""
    example: ClassVar[str] = ""
    """How one writes it to try it, where its name alone lacks an argument: what checks, documents and tests use."""
    refuses: ClassVar[Mapping[str, str]] = {}
    """Settings it cannot honour -> the reason; asking for one is an error before work starts."""

    @abstractmethod
    def decode(self, request: Request) -> Decoding:
        """Decode one request."""

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """What must be there with these parameters: `needs`, and more where a parameter asks for it."""
        return self.needs

    def admit(self, request: Request) -> None:  # noqa: B027
        """Raise MethodUnavailable, Refused or BadParameter where this request cannot be decoded. Called before work."""

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        """What `decode` may keep at once: of each sequence its network and the most rows that it may have, borrowed ones too.

        Memory is set aside for them before the request starts. Where it turns out to be too little, caches grow nevertheless.
        """
        return [(request.host.network, len(request.prompt) + request.settings.max_new_tokens)]

    def check(self) -> None:  # noqa: B027
        """Raise BadParameter where values that are right by themselves do not go together. Called when the method is made, of
        each class in the line of a method, the base first: none of them calls another."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if cls.__post_init__ is not Method.__post_init__:
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
        """This method with other values; what does nothing beside them any more has its default again."""
        mine = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | values
        mine |= {item.name: checked(self.name, item, mine[item.name]) for item in self.parameters()}
        while left := [item for item in self.parameters() if idle(item, mine)]:
            mine |= {item.name: item.default for item in left}
        return type(self)(**mine)

    @classmethod
    def parameters(cls) -> tuple[Parameter, ...]:
        """The parameters, in order of declaration."""
        return _parameters(cls)

    def spec(self) -> str:
        """The method as one writes it: its name and the parameters that differ from their defaults."""
        changed = [
            f"{p.name}={_written(value, p.type)}"
            for p in self.parameters()
            if (value := getattr(self, p.name)) != p.default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


@functools.cache
def _parameters(cls: type[Method]) -> tuple[Parameter, ...]:
    # Resolving type hints is slow, and every request asks for its method's parameters.
    return parameters_of(cls)


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


def build(cls: type[Method], values: Mapping[str, Any]) -> Method:
    """A method of class `cls` with these parameters. Raises BadParameter for unknown names."""
    known = {item.name for item in cls.parameters()}
    for name in values:
        if name not in known:
            hint = near(name, known) if known else "it has none."
            raise BadParameter(f"{cls.name} has no parameter {name!r}; {hint}")
    return cls(**values)


def refusal(method: Method, settings: Settings) -> str | None:
    """Why a method does not run with these settings; None where it does."""
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for name, reason in method.refuses.items():
        value = getattr(settings, name)
        if value not in (defaults.get(name), (), {}, None):
            return f"{method.name} does not run with {name}: {reason}"
    return None


def admit(method: Method, request: Request) -> None:
    """Raise Refused, BadParameter, BadPrompt or MethodUnavailable where a method does not run this request."""
    for need in method.requirements:
        missing = need.missing(method, request.host)
        if missing is not None:
            raise need.refusal(missing)
    reason = refusal(method, request.settings)
    if reason is not None:
        raise Refused(reason)
    method.admit(request)
