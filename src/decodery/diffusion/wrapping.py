"""Methods that change one part of another method: its blocks, or when it ends."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.diffusion.base import DiffusionMethod, StepwiseMethod
from decodery.engine.method import parameter
from decodery.engine.registry import method as as_method
from decodery.errors import BadParameter

if TYPE_CHECKING:
    from decodery.diffusion.blocks import BlockSchedule
    from decodery.diffusion.unmasking.base import Rule
    from decodery.engine.request import Request


@dataclass(frozen=True)
class WrappingMethod(StepwiseMethod):
    """Base of the methods that decode as `sampler` does, but for what the subclass overrides.

    Canvas, block length, steps, cache and guidance are parameters of this method, which the sampler then has as well.
    """

    sampler: str | None = parameter(
        None, "whose rule and blocks are used: a method that fills a canvas", names="method"
    )

    def check(self) -> None:
        self.inner()

    @abstractmethod
    def default_sampler(self) -> DiffusionMethod:
        """The sampler where none is named."""

    def inner(self) -> DiffusionMethod:
        """The sampler, with the canvas, steps, cache and guidance of this method.

        Raises BadParameter where it is no method that can be wrapped, or sets for itself what belongs here.
        """
        inner = self.default_sampler() if self.sampler is None else as_method(self.sampler)
        if not isinstance(inner, DiffusionMethod) or type(inner).decode is not DiffusionMethod.decode:
            raise BadParameter(
                f"{self.name}: {inner.name} is not made of a rule and blocks alone, so it cannot be the sampler."
            )
        shared = StepwiseMethod.parameters() if isinstance(inner, StepwiseMethod) else DiffusionMethod.parameters()
        own = [item.name for item in shared if getattr(inner, item.name) != item.default]
        if own:
            raise BadParameter(f"{self.name}: give {', '.join(own)} to {self.name} itself, not to its sampler.")
        return self.wrapped(inner)

    def wrapped(self, inner: DiffusionMethod) -> DiffusionMethod:
        """A sampler with the canvas of this method. Raises BadParameter where that does not suit it."""
        if isinstance(inner, StepwiseMethod):
            return inner.varied(**self.canvas_parameters(), steps=self.steps)
        return inner.varied(**self.canvas_parameters())

    def block(self, length: int) -> int:
        return self.inner().block(length)

    def unmasking(self, request: Request) -> Rule:
        return self.inner().unmasking(request)

    def blocks(self, request: Request, length: int) -> BlockSchedule:
        return self.inner().blocks(request, length)

    def forbidden(self, request: Request) -> tuple[int, ...]:
        return self.inner().forbidden(request)

    def admit(self, request: Request) -> None:
        super().admit(request)
        self.inner().admit(request)
