"""Recursive speculative decoding: draft trees drawn without replacement, so that no node repeats a sibling."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Exactness, parameter
from decodery.errors import BadParameter
from decodery.models.forward import Forward
from decodery.speculative.draft import Draft, Siblings
from decodery.speculative.draft_laws.base import DraftLaws
from decodery.speculative.draft_laws.growth import MOST_CHILDREN, grow_beam, grow_branching, level_sizes
from decodery.speculative.draft_laws.laws import DraftLawMethod
from decodery.speculative.loop import Drafter, Round

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.models.forward import Scores

BEAM, BRANCHING = "beam", "branching"


@dataclass(frozen=True)
class RecursiveSpeculativeDecoding(DraftLawMethod):
    """Draws the children of a node without replacement, by stochastic beam search or with fixed branching, and verifies
    them one after the other. Works with any drafter that gives probabilities, also without a second model."""

    name: ClassVar[str] = "recursive-speculative-decoding"
    title: ClassVar[str] = "Recursive Speculative Decoding"
    paper: ClassVar[str] = (
        "Jeon et al., 2024, arXiv 2402.14160; stochastic beams: Kool et al., ICML 2019, arXiv 1903.06059"
    )
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
    family: ClassVar[str] = "speculative"

    tree: str = parameter(
        BEAM,
        "beam (RSD-S): the first sequences of each level to come up; branching (RSD-C): so many children per node",
        choices=(BEAM, BRANCHING),
    )
    width: int = parameter(3, "sequences per level of a beam", low=1, high=64, only={"tree": BEAM})
    length: int = parameter(3, "levels of a beam", low=1, high=32, only={"tree": BEAM})
    branching: int | str = parameter(
        "3x1x1", "children of each node level by level, written 3x1x1", only={"tree": BRANCHING}
    )

    def check(self) -> None:
        self.levels()

    def levels(self) -> tuple[int, ...]:
        """The branching vector: children per node of each level. Raises BadParameter where it is none."""
        try:
            counts = tuple(int(count) for count in str(self.branching).split("x"))
        except ValueError:
            counts = (0,)
        if not all(1 <= count <= MOST_CHILDREN for count in counts):
            raise BadParameter(
                f"{self.name}: branching must be numbers from 1 to {MOST_CHILDREN} with an x between them, such as 3x1x1, "
                f"not {self.branching!r}."
            )
        return counts

    @property
    def chain_setting(self) -> str:
        if self.tree == BEAM:
            return "" if self.width == 1 else "width=1"
        return "" if set(self.levels()) == {1} else "branching=1x1x1"

    def most_nodes(self) -> int:
        return self.width * self.length if self.tree == BEAM else level_sizes(self.levels())

    def drafter(self, request: Request) -> DistinctDrafter:
        return DistinctDrafter(request, self.laws(request), self)


class DistinctDrafter(Drafter):
    """Grows trees whose siblings are drawn without replacement; in greedy decoding takes what is likeliest."""

    def __init__(self, request: Request, laws: DraftLaws, method: RecursiveSpeculativeDecoding):
        self._request, self._laws, self._method = request, laws, method

    def propose(self, tokens: Sequence[int], depth: int) -> Generator[Forward, Scores, Draft]:
        method = self._method
        if method.tree == BEAM:
            return grow_beam(self._request, self._laws, tokens, method.width, min(depth, method.length))
        levels = method.levels()[:depth]
        return grow_branching(self._request, self._laws, tokens, levels, Siblings.WITHOUT_REPLACEMENT)

    def observe(self, round: Round) -> None:
        self._laws.observe(round)
