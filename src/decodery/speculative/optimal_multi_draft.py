"""Optimal multi-draft decoding: draft trees whose verifier accepts as much as any can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Exactness, parameter
from decodery.engine.parameters import Where
from decodery.errors import BadParameter
from decodery.speculative.draft import Siblings
from decodery.speculative.draft_laws.growth import MOST_CHILDREN, level_sizes
from decodery.speculative.draft_laws.multi_draft import MultiDrafter, MultiDraftMethod

if TYPE_CHECKING:
    from decodery.engine.request import Request

MODES = {
    "greedy": Siblings.GREEDY,
    "with-replacement": Siblings.WITH_REPLACEMENT,
    "without-replacement": Siblings.WITHOUT_REPLACEMENT,
}


@dataclass(frozen=True)
class OptimalMultiDraft(MultiDraftMethod):
    """A draft tree whose nodes hold the likeliest tokens of the draft law and one drawn from the rest. For that set the
    verifier that accepts the most is as simple as speculative sampling. Other ways of drawing are there to compare."""

    name: ClassVar[str] = "optimal-multi-draft"
    title: ClassVar[str] = "Greedy multi-draft decoding with its optimal verifier"
    paper: ClassVar[str] = "Hu et al., Towards Optimal Multi-draft Speculative Decoding, ICLR 2025, arXiv 2502.18779"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
    family: ClassVar[str] = "speculative"

    widths: str | int = parameter("3x1x1", "drafts per node level by level, written 3x1x1")
    mode: str = parameter("greedy", "how the drafts of a node are drawn", choices=tuple(MODES))
    least: float = parameter(
        0.0,
        "nodes whose draft probability along the path is below this get no children",
        low=0.0,
        high=1.0,
        only={"widths": Where(lambda widths: "x" in str(widths), "has more than one level")},
    )

    def check(self) -> None:
        if not self.counts() or not all(1 <= count <= MOST_CHILDREN for count in self.counts()):
            raise BadParameter(
                f"{self.name}: widths must be numbers from 1 to {MOST_CHILDREN} with an x between them, such as 3x1x1, "
                f"not {self.widths!r}."
            )

    def counts(self) -> tuple[int, ...]:
        """Drafts per node, level by level; empty where `widths` is not readable."""
        parts = str(self.widths).split("x")
        return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()

    @property
    def siblings(self) -> Siblings:
        return MODES[self.mode]

    @property
    def chain_setting(self) -> str:
        return "" if set(self.counts()) == {1} else "widths=1x1x1"

    def most_nodes(self) -> int:
        return level_sizes(self.counts())

    def drafter(self, request: Request) -> MultiDrafter:
        widths = self.counts()
        return MultiDrafter(
            request, self.laws(request), self.siblings, lambda level, through: widths[level], len(widths), self.least
        )
