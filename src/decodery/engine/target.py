"""What is scored: one model after the request's prompt, or several sequences whose scores are read as those of one target.

A `Target` names the members and says how their scores become one row. Every method runs on it: the network that a request sees
is then a `ComposedNetwork`, each forward of which becomes one forward per member before the scheduler sees it. So members pack
with whatever else runs, draft trees are verified on the target's own law, and no method knows of it.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from decodery._lazy import torch
from decodery.engine.declared import Declared, build, parse_spec
from decodery.engine.vocabularies import Tokens, difference
from decodery.errors import BadParameter, BadSetting, MethodUnavailable, near
from decodery.models.kinds import Kind
from decodery.sampling.settings import ValueKind

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.host import Host
    from decodery.models.scorer import Scorer

BUILT_IN = {
    "guidance": "decodery.targets.guidance:Guidance",
    "contrast": "decodery.targets.contrast:Contrast",
    "ensemble": "decodery.targets.ensemble:Ensemble",
    "uscd": "decodery.targets.uscd:UncertaintyAwareContrast",
    "dola": "decodery.targets.dola:ContrastedLayers",
}
"""Name -> where its class is."""


@dataclass(frozen=True, slots=True)
class Member:
    """One sequence that a target scores: a network, and the prompt that it reads in place of the request's (None: the same)."""

    network: Scorer
    prompt: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Target(Declared, ABC):
    """Base of the targets. Subclasses are frozen dataclasses whose fields are made with `parameter`."""

    title: ClassVar[str]
    paper: ClassVar[str]
    """Authors, title, year and identifier of the source."""

    @abstractmethod
    def members(self, host: Host, prompt: Sequence[int]) -> Sequence[Member]:
        """The sequences beside the request's own, which is always the first. Raises MethodUnavailable or BadParameter where
        they cannot be had."""

    @property
    def defers(self) -> bool:
        """Whether the members wait for the scores of the request's own sequence, and are asked only where `asks` says so. They
        then read at once what they have missed; rows of trees are read by all at once."""
        return False

    def asks(self, rows: Tensor) -> Tensor:
        """Of which rows the members must be asked, [n] bool, given the raw scores [n, vocabulary] of the request's own
        sequence. The others are scored as these say."""
        return torch.ones(len(rows), dtype=torch.bool)

    def taps(self, network: Scorer) -> tuple[int, ...]:
        """Layers of the request's own network through whose rows its head is to be asked too."""
        return ()

    @property
    def norms_taps(self) -> bool:
        """Whether these rows go through the final norm before the head."""
        return True

    @abstractmethod
    def combine(self, rows: Sequence[Tensor]) -> Tensor:
        """The target's raw scores [n, vocabulary] float32, given those of the request's own sequence, of each member, and of
        each tapped layer."""


def companion(ours: Host, name: str, target: str) -> Scorer:
    """The network of another model that a target scores beside the request's own. Raises MethodUnavailable where its tokens are
    others."""
    other = ours.companion(name)
    network = other.network
    if Kind.NEXT_TOKEN not in network.kinds:
        raise MethodUnavailable(f"{target}: {network.name} is {network.kinds.words}, and a member scores next tokens.")
    found: str | None = None
    if network.vocabulary != ours.network.vocabulary:
        found = f"{network.name} has {network.vocabulary} tokens and {ours.network.name} {ours.network.vocabulary}"
    elif ours.tokenizer is not None and other.tokenizer is not None:
        found = difference(Tokens(ours), Tokens(other))
    if found is not None:
        raise MethodUnavailable(f"{target} adds up the scores of models with the same tokenizer, but {found}.")
    return network


def find(name: str) -> type[Target]:
    """The class of a target. Raises BadSetting."""
    if name not in BUILT_IN:
        raise BadSetting(f"target: there is no {name!r}; {near(name, BUILT_IN)}")
    module, attribute = BUILT_IN[name].split(":")
    cls: type[Target] = getattr(importlib.import_module(module), attribute)
    return cls


class Targets(ValueKind):
    """A `Target`, or text such as "guidance(scale=1.5)"."""

    option = str

    def schema(self) -> Mapping[str, Any]:
        return {"type": "string"}

    def check(self, name: str, value: Any, vocabulary: int) -> Target:
        if isinstance(value, Target):
            return value
        if not isinstance(value, str):
            raise BadSetting(f"{name} must be text such as guidance(scale=1.5), not {value!r}.")
        try:
            word, values = parse_spec(value)
            return build(find(word), values)
        except BadParameter as error:
            raise BadSetting(f"{name}: {error}") from None
