"""What a decoding method is, and how it declares itself.

A method is a frozen dataclass: its fields are its parameters, its class attributes say what it is called, where it was
published and what it guarantees. `decode` is the method itself: a coroutine that yields `Forward`s and is sent `Scores`.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.asking import Decoding as Decoding
from decodery.engine.declared import Declared
from decodery.engine.needs import NEXT_TOKENS, Requirement
from decodery.engine.parameters import parameter as parameter
from decodery.errors import Refused

if TYPE_CHECKING:
    from decodery.engine.prompt_layout import Arrangement
    from decodery.engine.request import Request
    from decodery.engine.settings import Settings
    from decodery.models.scorer import Scorer


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
class Method(Declared, ABC):
    """Base of all decoding methods.

    Subclasses are frozen dataclasses (their fields are made with `parameter`) and set the class attributes below.
    A method object holds no state of a request; what lives longer is kept in the request's memory.
    """

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

    weighs: ClassVar[bool] = False
    """Whether it weighs texts, and so can honour what a constraint says of how much each is worth."""
    together: ClassVar[bool] = False
    """It decides all `n` texts of a prompt together: `decode` is handed one request for them, works on forks of its output, and
    gives `request.n` of them to `request.conclude`. Otherwise each text is a request of its own."""

    @abstractmethod
    def decode(self, request: Request) -> Decoding:
        """Decode one request. It returns when the request is over; to return earlier is an error."""

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """What must be there with these parameters: `needs`, and more where a parameter asks for it."""
        return self.needs

    @property
    def arrangement(self) -> Arrangement | None:
        """How it reads prompts with marked sets; None: marks mean nothing to it, and are text like other text."""
        return None

    def admit(self, request: Request) -> None:
        """Raise MethodUnavailable, Refused or BadParameter where this request cannot be decoded. Called before work."""

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        """What `decode` may keep at once: of each sequence its network and the most rows that it may have, borrowed ones too.

        Memory is set aside for them before the request starts. Where it turns out to be too little, caches grow nevertheless.
        """
        return [(request.network, len(request.prompt) + request.settings.max_new_tokens)]


def refusal(method: Method, settings: Settings) -> str | None:
    """Why a method does not run with these settings; None where it does."""
    from decodery.engine.settings import declared

    known = declared()
    for name, reason in method.refuses.items():
        value = getattr(settings, name)
        if value not in (known[name].default, (), {}, None):
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
    constraint = request.settings.structured_outputs
    rule = None if constraint is None else constraint.constraint.rule
    if rule is not None and rule.weighs and not method.weighs:
        raise Refused(
            f"{method.name} does not run with {rule.called}, which says how much a text is worth, since it weighs no texts; "
            "awrs does."
        )
    source = request.settings.source
    if source.plain_only and not method.exactness.same_tokens:
        raise Refused(f"{method.name} does not run with {source.name}: {source.plain_only}.")
    drawn = method.exactness is Exactness.IDENTICAL_TO_SAMPLING and not request.law.greedy
    beside = NEXT_TOKENS not in method.needs or drawn
    if source.target_only and beside:
        raise Refused(f"{method.name} does not run with chance {source.name}: {source.target_only}.")
    if request.layout is not None:
        request.layout.check(request.network, len(request.prompt) + request.settings.max_new_tokens)
        if request.settings.echo and request.settings.logprobs is not None:
            raise Refused(
                "a prompt whose parts stand side by side is no text whose tokens had scores; ask for echo or logprobs alone."
            )
    method.admit(request)
