"""Plain decoding: one token per forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Decoding, Exactness, Method
from decodery.models.forward import Forward, Rows

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.models.forward import Scores


@dataclass(frozen=True)
class Autoregressive(Method):
    """Plain decoding: greedy at temperature 0, ancestral sampling otherwise. What all others are measured against."""

    name: ClassVar[str] = "autoregressive"
    title: ClassVar[str] = "Autoregressive decoding"
    paper: ClassVar[str] = "the chain rule; the baseline of every paper here"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_PLAIN
    family: ClassVar[str] = "sampling"

    def decode(self, request: Request) -> Decoding:
        sequence = request.new_sequence()
        yield from request.score_prompt(sequence)
        pending = list(request.tokens[sequence.length :])
        while True:
            scores: Scores = yield Forward(sequence, pending, logits=Rows.LAST)
            token = request.draw(scores.logits[0])
            if request.commit([token], scores.logits):
                return
            pending = [token]
