"""What a request may say of chance: a source of random draws, by name. `__init__` registers the files of this folder."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from decodery.errors import BadParameter, BadSetting, Refused, near
from decodery.sampling.settings import Setting, ValueKind, settings_of
from decodery.spec import parse_spec

if TYPE_CHECKING:
    from decodery.sampling.noise import Chance


@dataclass(frozen=True)
class DrawnSample:
    """Whose draws they are. seed: of the request. number, of: which of how many samples of the prompt. text: the committed
    tokens with the prompt, a list that grows with the output. prompt: how many of them are the prompt's."""

    seed: int
    number: int
    of: int
    text: Sequence[int]
    prompt: int


class Source(ABC):
    """Where a request's random draws come from: a frozen dataclass whose fields are its parameters, made with `setting`.

    Every source gives each single draw its right law.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One sentence."""
    by_name: ClassVar[bool] = True
    """Whether its name says all, so that it can be asked for by it."""
    target_only: ClassVar[str] = ""
    """Why it cannot be spent on anything but the target's own tokens, from left to right; empty: it can. Methods whose
    drafts are drawn at random, and those that fill canvases, are refused with this reason."""
    plain_only: ClassVar[str] = ""
    """Why every token must be drawn as plain sampling draws it; empty: it need not. Methods that do not promise plain
    decoding's very tokens are refused with this reason, as they would leave its purpose out without a word."""

    @abstractmethod
    def chance(self, sample: DrawnSample) -> Chance:
        """The draws of one sample."""

    @property
    def spread(self) -> bool:
        """Whether the samples of one seed depend on each other, so as to cover the space of texts evenly."""
        return False

    def refuses_samples(self, count: int) -> str | None:
        """Why it does not serve so many samples of a prompt; None where it does."""
        return None

    @classmethod
    def parameters(cls) -> tuple[Setting, ...]:
        """Its parameters."""
        return settings_of(cls) if dataclasses.is_dataclass(cls) else ()

    def spec(self) -> str:
        """As one writes it: its name and the parameters that differ from their defaults."""
        changed = [f"{p.name}={v}" for p in self.parameters() if (v := getattr(self, p.name)) != p.default]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


_SOURCES: dict[str, type[Source]] = {}


def register(source: type[Source]) -> type[Source]:
    """Make a source known by its name. Raises ValueError where the name is taken."""
    if source.name in _SOURCES:
        raise ValueError(f"there is a source of chance {source.name!r} already")
    _SOURCES[source.name] = source
    return source


def unregister(source: type[Source]) -> None:
    """Forget a source again."""
    del _SOURCES[source.name]


def sources() -> Mapping[str, type[Source]]:
    """All sources by name."""
    return _SOURCES


class Chances(ValueKind):
    """A source of chance: as name, as name(key=value), or a `Source`."""

    option = str

    def schema(self) -> Mapping[str, Any]:
        return {"type": "string"}

    def check(self, name: str, value: Any, vocabulary: int) -> Source:
        if isinstance(value, Source):
            return value
        if not isinstance(value, str):
            raise BadSetting(f"{name} must be a source of chance or its name ({', '.join(_SOURCES)}), not {value!r}.")
        try:
            word, values = parse_spec(value)
        except BadParameter as error:
            raise BadSetting(f"{name}: {error}") from None
        cls = _SOURCES.get(word)
        if cls is None:
            raise BadSetting(f"{name}: there is no source of chance {word!r}; {near(word, _SOURCES)}")
        known = {parameter.name: parameter for parameter in cls.parameters()}
        given: dict[str, Any] = {}
        for key, word in values.items():
            if key not in known:
                raise BadSetting(
                    f"{name} {cls.name} has no parameter {key!r}; {near(key, known) if known else 'none.'}"
                )
            try:
                given[key] = known[key].convert(word)
            except BadSetting as error:
                raise BadSetting(f"{name} {cls.name}: {error}") from None
        return _built(cls, given)


def _built(cls: type[Source], given: dict[str, Any]) -> Source:
    make: Callable[..., Source] = cls
    return make(**given)


def refuse_other_draws(source: Source, what: str) -> Refused:
    """What to say where a source that serves the target's own tokens alone is asked for another decision."""
    return Refused(f"chance {source.name} does not serve {what}: {source.target_only}.")
