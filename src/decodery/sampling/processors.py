"""Functions of the text and the scores that have a name, so that a request can ask for them in JSON.

A processor is a frozen dataclass whose fields are its arguments, made with `setting`; calling it gives the scores of the next
token. Those of other packages are found by the entry-point group `decodery.processors` (name -> "module:Class"). Nothing but
names and plain values ever comes from whoever asks: neither code nor pickles.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from decodery.errors import BadParameter, BadSetting, near
from decodery.sampling.settings import Callables, TokenIds, setting, settings_of
from decodery.spec import parse_spec

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("decodery")

ENTRY_POINTS = "decodery.processors"
FORBIDDEN = float("-inf")


class NamedProcessor(ABC):
    """Base of processors that can be asked for by name. It must give the same scores whenever it is called with the same."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """The scores [1, vocabulary] float32 of the token after `ids` [1, n]; `scores` may be changed in place."""


_KNOWN: dict[str, type[NamedProcessor]] = {}


def register_processor(cls: type[NamedProcessor]) -> type[NamedProcessor]:
    """Make a processor known; as a decorator, or called for one of another package. Raises ValueError for a taken name."""
    if _KNOWN.get(cls.name, cls) is not cls:
        raise ValueError(f"there is a processor {cls.name!r} already")
    _KNOWN[cls.name] = cls
    return cls


def processors() -> Mapping[str, type[NamedProcessor]]:
    """All processors by name: registered ones, and those of installed packages."""
    _read_entry_points()
    return _KNOWN


@functools.cache
def _read_entry_points() -> None:
    """Once, since looking at what is installed is slow. A package that fails is left out, with a warning in the log."""
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            register_processor(point.load())
        except Exception as error:
            log.warning("the processor %r comes from %s, which fails: %s", point.name, point.value, error)


def _made(name: str, given: object, vocabulary: int) -> Any:
    """The processor that a name, a spec or a JSON object means; a callable as it is. Raises BadSetting."""
    if callable(given):
        return given
    try:
        word, values = parse_spec(given) if isinstance(given, str) else _of_json(name, given)
    except BadParameter as error:
        raise BadSetting(f"{name}: {error}") from None
    if word not in processors():
        raise BadSetting(f"{name}: there is no processor {word!r}; {near(word, processors())}")
    cls = processors()[word]
    declared = {own.name: own for own in settings_of(cls)}
    for argument in values:
        if argument not in declared:
            raise BadSetting(f"{name}: {word} has no argument {argument!r}; {near(argument, declared)}")
    missing = next((own.name for own in declared.values() if own.default is None and own.name not in values), None)
    if missing is not None:
        raise BadSetting(f"{name}: {word} needs the argument {missing}.")
    return cls(**{argument: declared[argument].convert(value, vocabulary) for argument, value in values.items()})


def _of_json(name: str, given: object) -> tuple[str, dict[str, Any]]:
    if isinstance(given, Mapping) and isinstance(given.get("name"), str):
        return given["name"], {key: value for key, value in given.items() if key != "name"}
    raise BadSetting(f'{name}: a processor is a name, or {{"name": …}} with its arguments, not {given!r}.')


class NamedProcessors(Callables):
    """Functions (input_ids, scores), or names of processors with their arguments."""

    def schema(self) -> Mapping[str, Any]:
        one = {
            "anyOf": [
                {"type": "string"},
                *(
                    {
                        "type": "object",
                        "properties": {
                            "name": {"const": known},
                            **{
                                own.name: {**(own.kind.schema() or {}), "description": own.help}
                                for own in settings_of(cls)
                            },
                        },
                        "required": ["name", *(own.name for own in settings_of(cls) if own.default is None)],
                        "additionalProperties": False,
                    }
                    for known, cls in sorted(processors().items())
                ),
            ]
        }
        return {"type": "array", "items": one}

    def check(self, name: str, value: Any, vocabulary: int) -> tuple[Any, ...]:
        one = callable(value) or isinstance(value, str | Mapping)
        items: Sequence[Any] = [value] if one and not isinstance(value, list | tuple) else value or ()
        return super().check(name, tuple(_made(name, item, vocabulary) for item in items), vocabulary)


@register_processor
@dataclass(frozen=True)
class ForbiddenTokens(NamedProcessor):
    """None of these tokens (transformers' suppress_tokens)."""

    token_ids: tuple[int, ...] = setting(None, TokenIds(), "The tokens that must not come.")

    name = "forbidden-tokens"

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, list(self.token_ids)] = FORBIDDEN
        return scores
