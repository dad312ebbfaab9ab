"""A smaller model drafts: speculative sampling as first published."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Exactness, parameter
from decodery.models.forward import Forward
from decodery.speculative.draft import Draft, Siblings
from decodery.speculative.draft_laws import LAYERS, DraftLawMethod, DraftLaws, NetworkLaws
from decodery.speculative.growth import grow_branching
from decodery.speculative.loop import Drafter, Round

if TYPE_CHECKING:
    from decodery.engine.cost import CostCurve
    from decodery.engine.job import Job
    from decodery.models.forward import Scores


@dataclass(frozen=True)
class DraftModel(DraftLawMethod):
    """A smaller model with the same tokenizer proposes tokens, the target verifies them with the rejection rule.
    Without one, the target's own first layers stand in, which costs no memory but agrees with it less."""

    name: ClassVar[str] = "draft-model"
    title: ClassVar[str] = "Speculative sampling with a draft model"
    paper: ClassVar[str] = "Leviathan et al., ICML 2023, arXiv 2211.17192; Chen et al., 2023, arXiv 2302.01318"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
    family: ClassVar[str] = "speculative"
    needs: ClassVar[tuple[str, ...]] = ("a smaller model with the target's tokenizer, or the target's first layers",)

    draft: str = parameter(
        LAYERS, "a model's name, layers (the target's first), ngram (counts and recycled scores), ngram-text (counts)"
    )
    length: int | None = parameter(4, "tokens drafted per round", low=1, high=32, auto="what pays, from its acceptance")
    width: int = parameter(1, "draws after the last committed token; more than one makes a tree", low=1, high=16)

    def drafter(self, job: Job) -> ChainDrafter:
        laws = self.laws(job)
        curves = None
        if self.length is None:
            curves = (job.host.cost(job.host.network), _step_seconds(job, laws))
        return ChainDrafter(job, laws, self.length, self.width, curves)


def _step_seconds(job: Job, laws: DraftLaws) -> float:
    """Seconds of one draft token; nothing worth counting without a network."""
    if not isinstance(laws, NetworkLaws):
        return 0.0
    network = laws.network
    return job.host.cost(network)(1) * len(laws.layers.indices(network.layers)) / network.layers


class ChainDrafter(Drafter):
    """Draws chains from draft laws; in greedy decoding takes the likeliest tokens.

    curves: the target's cost curve and the seconds of one draft token, to choose the length by where it is None.
    """

    def __init__(
        self,
        job: Job,
        laws: DraftLaws,
        length: int | None,
        width: int,
        curves: tuple[CostCurve, float] | None = None,
    ):
        self._job, self._laws, self._length, self._width, self._curves = job, laws, length, width, curves
        self._accepted, self._tried = 2.0, 4.0

    def _depth(self) -> int:
        """The chain length with the most expected tokens per second, (1 - a^(g+1)) / (1 - a) over the round's cost."""
        if self._curves is None:
            assert self._length is not None
            return self._length
        target, step = self._curves
        rate = self._accepted / self._tried
        best, best_rate, expected, gain = 0, 1.0 / target(1), 1.0, 1.0
        for length in range(1, 17):
            gain *= rate
            expected += gain
            per_second = expected / (target(1 + length) + length * step)
            if per_second > best_rate:
                best, best_rate = length, per_second
        # A draft of one now and then keeps the estimate alive.
        return best if best or self._job.position % 16 else 1

    def propose(self, tokens: Sequence[int], depth: int) -> Generator[Forward, Scores, Draft]:
        depth = min(depth, self._depth())
        branching = [self._width, *[1] * (depth - 1)] if depth > 0 else []
        return grow_branching(self._job, self._laws, tokens, branching, Siblings.WITH_REPLACEMENT)

    def observe(self, round: Round) -> None:
        accepted = len(round.verdict.path)
        if len(round.draft):
            self._accepted += accepted
            self._tried += accepted + (1 if accepted < max(round.draft.depths()) else 0)
        self._laws.observe(round)
