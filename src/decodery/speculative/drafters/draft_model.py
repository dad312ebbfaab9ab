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


LONGEST = 16
"""Longest chain where the cost curve chooses."""


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

    @property
    def chain_setting(self) -> str:
        return "" if self.width == 1 else "width=1"

    def most_nodes(self) -> int:
        return self.width * (self.length or LONGEST)

    def drafter(self, job: Job) -> ChainDrafter:
        laws = self.laws(job)
        curves = None
        if self.length is None:
            curves = (job.host.cost(job.host.network), *_step_cost(job, laws))
        return ChainDrafter(job, laws, self.length, self.width, curves)


def _step_cost(job: Job, laws: DraftLaws) -> tuple[CostCurve | None, float]:
    """Of whose row a draft token costs which share; nothing worth counting without a network."""
    if not isinstance(laws, NetworkLaws):
        return None, 0.0
    network = laws.network
    return job.host.cost(network), len(laws.layers.indices(network.layers)) / network.layers


class ChainDrafter(Drafter):
    """Draws chains from draft laws; in greedy decoding takes the likeliest tokens.

    curves: the target's cost curve, that of the network that drafts, and the share of its layers that run, to choose the length
    by where it is None.
    """

    def __init__(
        self,
        job: Job,
        laws: DraftLaws,
        length: int | None,
        width: int,
        curves: tuple[CostCurve, CostCurve | None, float] | None = None,
    ):
        self._job, self._laws, self._length, self._width, self._curves = job, laws, length, width, curves
        self._accepted, self._tried = 2.0, 4.0

    def _depth(self) -> int:
        """The chain length with the most expected tokens per second, (1 - a^(g+1)) / (1 - a) over the round's cost."""
        if self._curves is None:
            assert self._length is not None
            return self._length
        context = len(self._job.tokens)
        target, drafting, share = self._curves
        target = target.at(context)
        step = 0.0 if drafting is None else drafting.at(context)(1) * share
        rate = self._accepted / self._tried
        best, best_rate, expected, gain = 0, 1.0 / target(1), 1.0, 1.0
        for length in range(1, LONGEST + 1):
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
