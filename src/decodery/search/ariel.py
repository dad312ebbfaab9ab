"""AriEL: texts as boxes of the unit cube, and points of the cube as texts.

Celotti, Brodeur and Rouat, AriEL: volume coding for sentence generation, 2020, arXiv 2003.13600.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from decodery._lazy import np
from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.engine.parameters import GIVEN, not_one_of
from decodery.errors import BadParameter, Refused
from decodery.models.forward import Forward, Rows
from decodery.sampling.noise import Numbers, Stage
from decodery.sampling.volumes import DIGITS, Box, Coordinate, ExactInterval, FloatInterval

if TYPE_CHECKING:
    from jaxtyping import Float64
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.models.scorer import Scorer
    from decodery.models.sequence import Sequence as CachedSequence
    from decodery.sampling.law import Law

RANDOM = "random"


@dataclass(frozen=True)
class Ariel(Method):
    """Decode the text whose box holds a point of the unit cube: a random point, a given one, that of a text, or one on the way
    from a text to another."""

    name: ClassVar[str] = "ariel"
    title: ClassVar[str] = "AriEL: texts as volumes"
    paper: ClassVar[str] = (
        "Celotti, Brodeur & Rouat, AriEL: volume coding for sentence generation, 2020, arXiv 2003.13600"
    )
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
    """Of random points. What a text or a point decides is no sample."""
    family: ClassVar[str] = "search"

    dimensions: int = parameter(16, "sides of the cube, which tokens cut in turn", low=1, high=1024)
    precision: str = parameter(
        "exact", "whole numbers, or doubles with 48 bits a dimension", choices=("exact", "float")
    )
    point: str = parameter(
        RANDOM,
        "what is decoded: a random point, or numbers from 0 to 1, one for each dimension, as decimals or fractions; in quotes",
        only={"text": ""},
    )
    text: str = parameter("", "a text that is brought to a point, which is decoded then")
    towards: str = parameter("", "another text: points on the way there", only={"text": GIVEN})
    share: float | None = parameter(
        None, "how far on the way", low=0.0, high=1.0, auto="the n texts lie evenly on it", only={"towards": GIVEN}
    )
    radius: float = parameter(
        0.0,
        "each coordinate is moved at random by at most so much",
        low=0.0,
        high=1.0,
        only=({"text": GIVEN}, {"point": not_one_of(RANDOM)}),
    )
    reading: str = parameter(
        "steps",
        "how a text is read: token by token, as it is decoded, or in one pass, from where it may not come back",
        choices=("steps", "pass"),
        only={"text": GIVEN},
    )

    def check(self) -> None:
        if self.point != RANDOM:
            self.given()
        if self.point == RANDOM and not self.text and self.radius:
            raise BadParameter(
                f"{self.name}: radius moves a given point or that of a text, and a random one is neither."
            )
        if self.point != RANDOM or self.text:
            object.__setattr__(self, "exactness", Exactness.QUALITY_CHANGING)

    def given(self) -> list[Fraction]:
        """The coordinates that were written. Raises BadParameter."""
        try:
            found = [Fraction(word) for word in self.point.split()]
        except (ValueError, ZeroDivisionError):
            found = []
        if len(found) != self.dimensions or any(not 0 <= value <= 1 for value in found):
            raise BadParameter(
                f"{self.name}: point must be {RANDOM}, or a number from 0 to 1 for each of the {self.dimensions} dimensions, "
                f"with blanks between them, not {self.point!r}."
            )
        return found

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        return super().caches(request) * (2 if self.text else 1)

    def new_box(self) -> Box:
        """The whole cube."""
        kind = ExactInterval if self.precision == "exact" else FloatInterval
        return Box([kind() for _ in range(self.dimensions)])

    def decode(self, request: Request) -> Decoding:
        sequence = request.new_sequence()
        yield from request.score_prompt(sequence)
        scores: Scores = yield Forward(sequence, list(request.tokens[sequence.length :]), logits=Rows.LAST)
        row, ends, told = scores.logits[0], [], []
        for text in filter(None, (self.text, self.towards)):
            box, tokens, forwards = yield from self._encode(request, sequence, row, text)
            ends.append(box.point)
            told.append({**_about(box), "tokens": tokens, "forwards": forwards})
        point = self._point(request, ends)
        box = self.new_box()
        while True:
            masses = masses_of(request.law, row)
            token = box.find(masses, point)
            box.take(masses, token)
            request.statistics.details["ariel"] = {**_about(box), "encoded": told}
            if request.commit([token], row[None]):
                return
            scores = yield Forward(sequence, [token], logits=Rows.LAST)
            row = scores.logits[0]

    def _point(self, request: Request, ends: Sequence[list[Fraction]]) -> list[Coordinate]:
        """What is decoded."""
        if self.point == RANDOM and not ends:
            if request.law.greedy:  # every point is in the one box
                return [Coordinate.exactly(Fraction(0))] * self.dimensions
            return [self._random(request, number) for number in range(self.dimensions)]
        start = ends[0] if ends else self.given()
        if self.towards:
            of = request.settings.n - 1
            between = Fraction(request.sample, of) if of else Fraction(1, 2)
            share = between if self.share is None else Fraction(self.share)
            start = [(1 - share) * one + share * other for one, other in zip(*ends, strict=True)]
        if self.radius:
            moves = [self._digits(request, number, 0) for number in range(self.dimensions)]
            reach = Fraction(self.radius)
            start = [
                one + reach * (Fraction(2 * move, 1 << DIGITS) - 1) for one, move in zip(start, moves, strict=True)
            ]
        return [Coordinate.exactly(one) for one in start]

    def _random(self, request: Request, number: int) -> Coordinate:
        drawn = iter(range(1 << 62))
        return Coordinate.drawn(lambda: self._digits(request, number, next(drawn)))

    def _digits(self, request: Request, number: int, part: int) -> int:
        """53 binary digits of coordinate `number`."""
        noise, place, index = request.noise, len(request.prompt), (self.name, number, part)
        if not isinstance(noise, Numbers):
            raise Refused(f"{self.name} draws points as numbers, and this chance decides without any.")
        drawn = noise.uniform(place, Stage.TARGET, index)
        noise.note(place, Stage.TARGET, index, drawn)
        return int(drawn * 2.0**DIGITS)

    def _encode(
        self, request: Request, sequence: CachedSequence, row: Tensor, text: str
    ) -> Generator[Forward, Scores, tuple[Box, int, int]]:
        """The box of a text after the prompt, how many tokens it has, and the forwards that it took. row: [vocabulary] the
        scores after the prompt, whose cache is `sequence`.

        It is read like it is decoded, with an end token of the model behind it where that ends outputs and there is room.
        """
        tokens: list[int] = request.host.encode(text)
        room = request.settings.max_new_tokens
        if not 0 < len(tokens) <= room:
            raise Refused(
                f"{self.name}: a text has from 1 to {room} tokens, which is max_new_tokens, and {text!r} has {len(tokens)}."
            )
        box, output, own = self.new_box(), request.output.fork(), sequence.fork()
        ending = len(tokens) < room and bool(request.stop_ids)
        rows, forwards = [row], 0
        if self.reading == "pass":
            fed = tokens if ending else tokens[:-1]
            if fed:
                scores = yield Forward(own, fed)
                rows, forwards = [row, *scores.logits], 1
        for place in range(len(tokens) + ending):
            masses = masses_of(output.law, rows[-1 if self.reading == "steps" else place])
            token = tokens[place] if place < len(tokens) else _end(masses, request.stop_ids)
            if masses[token] == 0:
                what = "an end" if place == len(tokens) else f"token {place + 1} of {text!r}"
                raise Refused(
                    f"{self.name}: {what} has no probability under these settings, so the text has no box; raise the "
                    "temperature, or cut less off the law."
                )
            box.take(masses, token)
            over = output.commit([token], rows[-1 if self.reading == "steps" else place][None])
            if over or place + 1 == len(tokens) + ending:
                return box, place + 1, forwards
            if self.reading == "steps":
                scores = yield Forward(own, [token], logits=Rows.LAST)
                rows, forwards = [scores.logits[0]], forwards + 1
        raise AssertionError("a text without tokens")


def masses_of(law: Law, row: Tensor) -> Float64[np.ndarray, "vocabulary"]:
    """The processed law after the committed text, from raw scores [vocabulary]."""
    found: Float64[np.ndarray, "vocabulary"] = law.probabilities(row).double().cpu().numpy()
    return found


def _end(masses: Float64[np.ndarray, "vocabulary"], stop_ids: frozenset[int]) -> int:
    """The likeliest token that ends a text."""
    return max(sorted(stop_ids), key=lambda token: masses[token])


def _about(box: Box) -> dict[str, Any]:
    """What is told of a box: its volume, and a point of it as it may be given."""
    return {"log_volume": box.log_volume, "point": " ".join(str(one) for one in box.point)}
