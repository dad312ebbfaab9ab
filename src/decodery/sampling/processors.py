"""Functions of the text and the scores that have a name, so that a request can ask for them in JSON.

A processor is a frozen dataclass whose fields are its arguments, made with `setting`; calling it gives the scores of the next
token. Those of other packages are found by the entry-point group `decodery.processors`; see `named.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from decodery.sampling.named import Registry
from decodery.sampling.settings import Callables, TokenIds, setting

if TYPE_CHECKING:
    from torch import Tensor

ENTRY_POINTS = "decodery.processors"
FORBIDDEN = float("-inf")


class NamedProcessor(ABC):
    """Base of processors that can be asked for by name. It must give the same scores whenever it is called with the same."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """The scores [1, vocabulary] float32 of the token after `ids` [1, n]; `scores` may be changed in place."""


REGISTRY: Registry[NamedProcessor] = Registry("processor", ENTRY_POINTS)


def register_processor(cls: type[NamedProcessor]) -> type[NamedProcessor]:
    """Make a processor known; as a decorator, or called for one of another package. Raises ValueError for a taken name."""
    return REGISTRY.register(cls)


def processors() -> Mapping[str, type[NamedProcessor]]:
    """All processors by name: registered ones, and those of installed packages."""
    return REGISTRY.all()


class NamedProcessors(Callables):
    """Functions (input_ids, scores), or names of processors with their arguments."""

    def schema(self) -> Mapping[str, Any]:
        return {"type": "array", "items": REGISTRY.schema()}

    def check(self, name: str, value: Any, vocabulary: int) -> tuple[Any, ...]:
        one = callable(value) or isinstance(value, str | Mapping)
        items: Sequence[Any] = [value] if one and not isinstance(value, list | tuple) else value or ()
        made = (item if callable(item) else REGISTRY.made(name, item, vocabulary) for item in items)
        return super().check(name, tuple(made), vocabulary)


@register_processor
@dataclass(frozen=True)
class ForbiddenTokens(NamedProcessor):
    """None of these tokens (transformers' suppress_tokens)."""

    token_ids: tuple[int, ...] = setting(None, TokenIds(), "The tokens that must not come.")

    name = "forbidden-tokens"

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, list(self.token_ids)] = FORBIDDEN
        return scores
