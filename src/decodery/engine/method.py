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
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from decodery.engine.plain import plain
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
        return self in (Exactness.IDENTICAL_TO_SAMPLING, Exactness.GREEDY_IDENTICAL)


def parameter(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    auto: str = "",
) -> Any:
    """A dataclass field that is a parameter of a method.

    help: one line. low, high: inclusive range. choices: allowed words. auto: what None (written "auto") means.
    """
    meta = {"help": help, "low": low, "high": high, "choices": choices, "auto": auto}
    return dataclasses.field(default=default, metadata=meta)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method, as the registry lists it."""

    name: str
    type: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    auto: str = ""

    @property
    def range(self) -> str:
        """The allowed values, for people."""
        if self.choices:
            return " | ".join(self.choices)
        if self.low is None and self.high is None:
            return ""
        low = "" if self.low is None else f"{self.low:g}"
        return f"{low}..{'' if self.high is None else f'{self.high:g}'}"


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
    needs: ClassVar[tuple[str, ...]] = ()
    """What must be there for it to run, in words."""
    refuses: ClassVar[Mapping[str, str]] = {}
    """Settings it cannot honour -> the reason; asking for one is an error before work starts."""

    @abstractmethod
    def decode(self, request: Request) -> Decoding:
        """Decode one request."""

    @property
    def beyond_chains(self) -> str:
        """What it asks of the target that a network of chains alone does not answer (`Scorer.chains_only`), as the rest of a
        sentence that begins with its name; empty where it asks nothing of the kind, or drafts chains there."""
        return ""

    @property
    def finishes_layers(self) -> bool:
        """Whether it has later layers go on from hidden rows of earlier ones, which only the network itself can do, and no
        target of several members."""
        return False

    def admit(self, request: Request) -> None:  # noqa: B027
        """Raise MethodUnavailable, Refused or BadParameter where this request cannot be decoded. Called before work."""

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        """What `decode` may keep at once: of each sequence its network and the most rows that it may have, borrowed ones too.

        Memory is set aside for them before the request starts. Where it turns out to be too little, caches grow nevertheless.
        """
        return [(request.network, len(request.prompt) + request.settings.max_new_tokens)]

    def __post_init__(self) -> None:
        for item in self.parameters():
            object.__setattr__(self, item.name, _checked(self.name, item, getattr(self, item.name)))

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
    hints = typing.get_type_hints(cls)
    return tuple(
        Parameter(field.name, _type_name(hints[field.name]), field.default, **field.metadata)
        for field in dataclasses.fields(cls)
    )


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        names = [_type_name(arg) for arg in inner]
        return " | ".join([*names, "auto"] if len(inner) < len(typing.get_args(hint)) else names)
    return hint.__name__ if isinstance(hint, type) else str(hint)


TYPES: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "bool": bool, "str": str}


def _checked(method: str, item: Parameter, value: Any) -> Any:
    """The value of a parameter, or BadParameter."""
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


DIFFUSION = "diffusion"
"""The family of the methods that fill a canvas."""


APPENDED_ONLY = "keeps a cache of its own for each text, which whole tokens can be appended to and nothing else"
"""What there is to say of a network of chains alone."""


def admit(method: Method, request: Request) -> None:
    """Raise Refused, BadParameter, BadPrompt or MethodUnavailable where a method does not run this request."""
    network = request.host.network.name
    if method.family == DIFFUSION and request.host.diffusion is None:
        raise Refused(f"{method.name} fills the canvas of a masked-diffusion model, and {network} is a causal one.")
    if method.family != DIFFUSION and request.host.diffusion is not None:
        raise Refused(
            f"{method.name} decodes causal models, and {network} is a masked-diffusion model; masked-diffusion runs on it."
        )
    if request.network.chains_only and method.beyond_chains:
        raise Refused(f"{method.name} {method.beyond_chains}, and {network} {APPENDED_ONLY}.")
    if request.settings.target is not None and method.finishes_layers:
        raise Refused(
            f"{method.name} has later layers go on from the hidden rows of earlier ones, which a target of several members "
            "cannot."
        )
    reason = refusal(method, request.settings)
    if reason is not None:
        raise Refused(reason)
    method.admit(request)
