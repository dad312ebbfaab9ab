"""Diverse beam search: groups of beams, each of which keeps away from what the groups before it have chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.engine.parameters import above
from decodery.errors import BadParameter, Refused
from decodery.search import diversity
from decodery.search.beams import (
    DRAWS_NOTHING,
    WIDEST,
    Beam,
    BeamGroup,
    Ending,
    beam_caches,
    check_width,
    concluded,
    searched,
)

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer

MORE_THAN_ONE = {"groups": above(1)}
"""Beside which diversity acts: one group has no earlier ones."""


@dataclass(frozen=True)
class DiverseBeamSearch(Method):
    """Beams in groups: each group searches for likely texts that differ from those of the groups before it, so that several
    texts of one prompt are several and not one with small changes."""

    name: ClassVar[str] = "diverse-beam-search"
    title: ClassVar[str] = "Diverse beam search"
    paper: ClassVar[str] = (
        "Vijayakumar et al., Diverse Beam Search: Decoding Diverse Solutions from Neural Sequence Models, AAAI 2018, arXiv "
        "1610.02424"
    )
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "search"
    together: ClassVar[bool] = True
    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(("temperature", "top_k", "top_p", "min_p"), DRAWS_NOTHING)

    beams: int = parameter(2, "texts that grow side by side, in all groups together", low=1, high=WIDEST)
    groups: int = parameter(2, "groups of equal size", low=1, high=WIDEST)
    strength: float | str = parameter(
        0.5,
        "what a choice in common costs, in units of log probability; or one for each earlier group, joined by x, as in 0.5x0.2",
        low=0.0,
        only=MORE_THAN_ONE,
    )
    diversity: str = parameter(
        "hamming",
        "what counts as alike: the same token at the same step, the same n-gram anywhere, long agreement, or the cosine of "
        "embeddings in place of sameness",
        choices=diversity.KINDS,
        only=MORE_THAN_ONE,
    )
    ngram: int = parameter(2, "tokens of an n-gram", low=1, high=16, only={"diversity": ("ngram", "ngram-embedding")})
    fading: float = parameter(
        5.0,
        "positions that two texts must differ at until their likeness is punished e times less",
        low=1e-3,
        only={"diversity": "cumulative"},
    )
    length_penalty: float = parameter(
        0.0, "finished texts are ranked by their sum over length to this power; above 0 favours long texts"
    )
    order: str = parameter(
        "penalised",
        "how the texts of all groups are ranked: by what the search went by, or by log probability with nothing taken off",
        choices=("penalised", "likelihood"),
        only=MORE_THAN_ONE,
    )

    def check(self) -> None:
        if self.beams % self.groups:
            raise BadParameter(
                f"{self.name}: {self.beams} beams do not divide into {self.groups} groups of equal size."
            )
        self.strengths()

    def strengths(self) -> list[float]:
        """The strength towards each group but the last. Raises BadParameter."""
        parts = str(self.strength).split("x") if isinstance(self.strength, str) else [self.strength] * (self.groups - 1)
        try:
            values = [float(part) for part in parts]
        except ValueError:
            values = [-1.0]
        if any(not 0 <= value < float("inf") for value in values) or len(values) != self.groups - 1:
            raise BadParameter(
                f"{self.name}: strength is a number of at least 0, or {self.groups - 1} of them joined by x (one for each "
                f"group but the last), not {self.strength!r}."
            )
        return values

    def admit(self, request: Request) -> None:
        check_width(self.name, request, self.beams)
        if self.diversity in diversity.EMBEDDED and request.network.hidden is None:
            raise Refused(
                f"{self.name}: diversity={self.diversity} compares embeddings, and {request.network.name} has none."
            )

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        return beam_caches(request, self.beams)

    def decode(self, request: Request) -> Decoding:
        alike = diversity.likeness(request, self.diversity, self.ngram, self.fading)
        strengths = self.strengths()

        def penalties(earlier: Sequence[BeamGroup], group: BeamGroup) -> Sequence[Tensor] | None:
            told = [
                (strength, other.chosen) for strength, other in zip(strengths, earlier, strict=False) if other.chosen
            ]
            if not told:
                return None
            return [sum(s * alike(beam, chosen) for s, chosen in told) for beam in group.live]  # type: ignore[misc]

        # A text is ended early only where nothing could rank better: exact without a length penalty, since sums only fall.
        ending = Ending(self.length_penalty, "never", request.settings.max_new_tokens)
        groups = yield from searched(request, self.groups, self.beams // self.groups, ending, penalties)
        found = [(number, score, beam) for number, group in enumerate(groups) for score, beam in group.finished]

        def ranked(by: str, entry: tuple[int, float, Beam]) -> float:
            return entry[1] if by == "penalised" else ending.ranked(entry[2].likelihood, entry[2].length)

        places = {
            by: sorted(range(len(found)), key=lambda place, by=by: -ranked(by, found[place]))  # type: ignore[misc]
            for by in ("penalised", "likelihood")
        }
        request.statistics.details["texts"] = [
            {
                "group": number,
                "token_ids": beam.output.new_tokens,
                "penalised": beam.total,
                "likelihood": beam.likelihood,
                "log_probability": beam.log_probability,
                "place_by_penalised": places["penalised"].index(place),
                "place_by_likelihood": places["likelihood"].index(place),
            }
            for place, (number, _, beam) in enumerate(found)
        ]
        chosen = [found[place] for place in places[self.order]]
        concluded(request, [(ranked(self.order, entry), entry[2]) for entry in chosen], self.name)
