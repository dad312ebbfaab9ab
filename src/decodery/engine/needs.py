"""What a method needs of the model that it runs on: declared, so that everybody can ask and nobody has to read prose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from decodery.errors import DecoderyError, MethodUnavailable, Refused
from decodery.models.kinds import Kind

if TYPE_CHECKING:
    from decodery.engine.host import Host

DEFAULTS = {
    Kind.NEXT_TOKEN: "cascade",
    Kind.MASKED_POSITIONS: "masked-diffusion",
    Kind.ANY_ORDER: "any-subset-speculative",
    Kind.INSERTIONS: "insertion-language-models",
}
"""What decodes with a model of a kind where no method is named: lossless where it can be, needs nothing, and fast."""


class Asking(Protocol):
    """A method, as far as its needs look at it."""

    name: ClassVar[str]


@dataclass(frozen=True)
class Requirement(ABC):
    """Something that must be there for a method to run."""

    refusal: ClassVar[type[DecoderyError]] = Refused
    """The error where it is not."""
    extra: ClassVar[bool] = True
    """Whether it is more than a suitable model: something to be fetched, trained or named."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What it is, in words."""

    @abstractmethod
    def missing(self, method: Asking, host: Host) -> str | None:
        """Why it is not there, as a sentence; None where it is."""


@dataclass(frozen=True)
class Scoring(Requirement):
    """A model of this kind."""

    kind: Kind
    extra: ClassVar[bool] = False

    @property
    def words(self) -> str:
        return self.kind.words

    def missing(self, method: Asking, host: Host) -> str | None:
        has, name = host.network.kinds, host.network.name
        if self.kind in has:
            return None
        is_one = has.words if self.kind is Kind.NEXT_TOKEN else f"{has.words.removesuffix('model')}one"
        advice = " or ".join(default for kind, default in DEFAULTS.items() if kind in has)
        return f"{method.name} decodes with {self.words}, and {name} is {is_one}" + (
            f"; {advice} runs on it." if advice else "."
        )


@dataclass(frozen=True)
class MoreThanChains(Requirement):
    """Trees, masks, rewritten rows or parts of a network, which one of chains alone (`Scorer.chains_only`) does not have.

    use: what the method does with them, as the rest of a sentence that begins with its name.
    """

    use: str
    extra: ClassVar[bool] = False

    @property
    def words(self) -> str:
        return "a network that takes more than chains of tokens"

    def missing(self, method: Asking, host: Host) -> str | None:
        if not host.network.chains_only:
            return None
        return (
            f"{method.name} {self.use}, and {host.network.name} keeps a cache of its own for each text, which whole tokens can "
            "be appended to and nothing else."
        )


@dataclass(frozen=True)
class Taps(Requirement):
    """Hidden rows that leave the network's layers."""

    refusal: ClassVar[type[DecoderyError]] = MethodUnavailable
    extra: ClassVar[bool] = False

    @property
    def words(self) -> str:
        return "a network whose hidden rows can be read"

    def missing(self, method: Asking, host: Host) -> str | None:
        if host.network.hidden is not None:
            return None
        return f"{method.name}: {host.network.name} has no hidden rows to go on from."


@dataclass(frozen=True)
class Companion(Requirement):
    """Another model, which a parameter names.

    parameter: that names it. what: the model, in words. kind: of which it must be; None: the method judges by itself, since
    there are values that name no model. beside: the model that the parameter's default goes with.
    """

    parameter: str
    what: str
    kind: Kind | None = None
    beside: str = ""

    @property
    def words(self) -> str:
        return self.what

    def missing(self, method: Asking, host: Host) -> str | None:
        if self.kind is None:
            return None
        named: str = getattr(method, self.parameter)
        has = host.companion(named).network.kinds
        if self.kind in has:
            return None
        return f"{method.name}: the {self.parameter} must be {self.kind.words}, and {named} is {has.words}."


@dataclass(frozen=True)
class Artifact(Requirement):
    """Something trained or made for a model. The method looks for it, since where it lies is one of its parameters.

    what: in words.
    """

    what: str

    @property
    def words(self) -> str:
        return self.what

    def missing(self, method: Asking, host: Host) -> str | None:
        return None


NEXT_TOKENS = Scoring(Kind.NEXT_TOKEN)
MASKED_POSITIONS = Scoring(Kind.MASKED_POSITIONS)
ANY_ORDER = Scoring(Kind.ANY_ORDER)
INSERTIONS = Scoring(Kind.INSERTIONS)
