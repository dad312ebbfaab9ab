"""An example of a method that decides several texts of a prompt together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from decodery.engine.method import Decoding, Exactness, Method
from decodery.models.forward import Forward, Rows

if TYPE_CHECKING:
    from decodery.engine.output import Output
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer


@dataclass(frozen=True)
class BeamSearch(Method):
    """The `n` likeliest texts that a search of width `n` finds, each with its probability under the processed law."""

    name: ClassVar[str] = "example-beams"
    title: ClassVar[str] = "Beam search"
    paper: ClassVar[str] = "Lowerre, The Harpy speech recognition system, 1976"
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "testing"
    together: ClassVar[bool] = True

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        return super().caches(request) * 2 * request.n

    def decode(self, request: Request) -> Decoding:
        sequence = request.new_sequence()
        yield from request.score_prompt(sequence)
        scores = yield Forward(sequence, request.tokens[sequence.length :], logits=Rows.LAST)
        beams = [(request.output, sequence, scores.logits[0])]
        over: list[Output] = []
        while beams:
            steps: list[tuple[float, Any, int]] = []
            for beam in beams:
                law = beam[0].law.log_probabilities(beam[2])
                likeliest = law.topk(min(request.n, len(law)))
                pairs = zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
                steps += [((beam[0].score or 0.0) + value, beam, token) for value, token in pairs if value > -math.inf]
            steps.sort(key=lambda step: -step[0])
            going = []
            for score, (parent, rows, row), token in steps[: request.n - len(over)]:
                output = parent.fork()
                output.score = score
                if output.commit([token], row[None]):
                    over.append(output)
                else:
                    going.append((output, rows.fork()))
            answers = yield tuple(Forward(rows, output.tokens[-1:]) for output, rows in going)
            beams = [(*pair, answer.logits[0]) for pair, answer in zip(going, answers, strict=True)]
        over.sort(key=lambda output: -(output.score or 0.0))
        request.conclude([(output, math.exp(output.score or 0.0)) for output in over])
