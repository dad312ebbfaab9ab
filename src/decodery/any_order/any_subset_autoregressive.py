"""Plain decoding with an any-order model: one token per forward, from the lowest open position to the highest."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.any_order.base import AnyOrderMethod
from decodery.any_order.window import OrderedWindow
from decodery.engine.method import Exactness
from decodery.sampling.noise import Stage

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.models.forward import Forward, Scores


@dataclass(frozen=True)
class AnySubsetAutoregressive(AnyOrderMethod):
    """Fill the holes of a text, or go on with it, one token per forward: each from its law given all that is known."""

    name: ClassVar[str] = "any-subset-autoregressive"
    title: ClassVar[str] = "Any-subset autoregressive decoding"
    paper: ClassVar[str] = (
        "Guo & Ermon, Reviving Any-Subset Autoregressive Models with Principled Parallel Sampling and Speculative Decoding, "
        "2025, arXiv 2504.20456; the order after Shih et al., arXiv 2205.13554"
    )
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING

    def fill_in(self, request: Request, window: OrderedWindow) -> Generator[Forward, Scores, None]:
        while not window.over:
            laws = yield from window.score(1)
            [position] = window.next(1)
            token = request.noise.choose(laws.probabilities[0], position, Stage.TARGET)
            window.decide([token], laws.scores)
