"""SpecTr: several independent drafts, verified together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Exactness, parameter
from decodery.engine.parameters import above
from decodery.speculative.draft import Siblings
from decodery.speculative.draft_laws.multi_draft import AUTO, BEST, MultiDrafter, MultiDraftMethod

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.speculative.draft import Draft
    from decodery.speculative.verifiers import Verifier


@dataclass(frozen=True)
class Spectr(MultiDraftMethod):
    """Draws several independent continuations and keeps those that agree with what was accepted, position by position.
    Each is tested against the target divided by the smallest factor that keeps the output exact (K-SEQ)."""

    name: ClassVar[str] = "spectr"
    title: ClassVar[str] = "SpecTr"
    paper: ClassVar[str] = "Sun et al., SpecTr, NeurIPS 2023, arXiv 2310.15141"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
    family: ClassVar[str] = "speculative"

    drafts: int = parameter(3, "independent continuations", low=1, high=32)
    length: int = parameter(3, "tokens of each", low=1, high=32)
    rho: str = parameter(
        "best",
        "division factor of K-SEQ: the best valid one, or the number of drafts",
        choices=("best", "drafts"),
        only={"verifier": (AUTO, BEST[Siblings.WITH_REPLACEMENT]), "drafts": above(1)},
    )

    @property
    def siblings(self) -> Siblings:
        return Siblings.WITH_REPLACEMENT

    @property
    def chain_setting(self) -> str:
        return "" if self.drafts == 1 else "drafts=1"

    def most_nodes(self) -> int:
        return self.drafts * self.length

    def drafter(self, request: Request) -> MultiDrafter:
        def counts(level: int, through: int) -> int:
            return through if level else self.drafts

        return MultiDrafter(request, self.laws(request), self.siblings, counts, self.length)

    def judge(self, draft: Draft, greedy: bool) -> Verifier:
        if self.rho == "best" or greedy or draft.siblings is Siblings.DETERMINISTIC:
            return super().judge(draft, greedy)
        from decodery.speculative.verifiers import KSeq

        return KSeq(best_factor=False)
