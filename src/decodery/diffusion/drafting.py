"""The loop of FreeDave: a static decoder of a canvas that drafts its own next states and has them forwarded together.

Free Draft-and-Verification, 2025, arXiv 2510.00294.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from decodery._lazy import torch
from decodery.diffusion.loop import CanvasForwards, Denoising
from decodery.diffusion.unmasking.base import Asking, Commit
from decodery.models.forward import Forward, Scores, Slots

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.diffusion.canvas import Canvas
    from decodery.diffusion.laws import Laws
    from decodery.diffusion.state import CanvasState, Plan
    from decodery.engine.request import Request
    from decodery.models.sequence import Sequence as CachedSequence
    from decodery.sampling.noise import Chance, Index, Stage


@dataclass(frozen=True, slots=True)
class DraftedState:
    """A guess at a state of the canvas; commit: by which it follows from the one before."""

    commit: Commit
    state: CanvasState


@dataclass(frozen=True, slots=True)
class Likeliest:
    """A chance without noise: whatever is likeliest."""

    def choose(
        self, probabilities: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()
    ) -> int:
        return int(probabilities.argmax())

    def accept(self, probability: float, position: int, index: Index = 0) -> bool:
        return probability > 0.5

    def fork(self, text: Sequence[int]) -> Likeliest:
        return self

    def race(self, log_weights: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()) -> int:
        return int(log_weights.argmax())


class Drafting(Denoising):
    """The static decoder of a plan, which finds the forwards of most of its states made already.

    It is the loop itself, with two joints of its own: where the step that is chosen leads to a state that was drafted, its
    laws are at hand; where it does not, the new state is forwarded together with drafts of the next ones. Every state is one
    that the static decoder visits, and its laws are those of a forward of exactly this canvas: by itself, or as a draft that
    turned out to be it. The plan's blocks must not look ahead, nor its rule at the whole canvas.

    draft_steps: states that are forwarded together, the true one included. layout: "batch" (a copy of the cache for each),
    "tree" (copies of the rows side by side in one forward), or "single" (one after the other; to tell rounding from errors).
    eager: drafts go on in the next blocks; needs a cache that is not refreshed where a block begins. subset: a draft is also
    accepted if all it fills is part of what the static decoder would fill.
    """

    def __init__(
        self,
        request: Request,
        plan: Plan,
        draft_steps: int,
        layout: str,
        eager: bool = False,
        subset: bool = False,
        **more: Any,
    ):
        from decodery.sampling.noise import Noise

        super().__init__(request, plan, **more)
        self.draft_steps, self.layout, self.eager, self.subset = draft_steps, layout, eager, subset
        # Noise may be asked twice at an address. A chance that may not is left to the decoder itself.
        self._guessing: Chance = self.chance if isinstance(self.chance, Noise) else Likeliest()
        self.known: list[tuple[DraftedState, Laws]] = []
        """Guesses at the states to come, each with the laws of its forward."""
        self._next: Laws | None = None
        """The laws of the state that the next step leads to, where it is a draft."""
        self._copies: list[tuple[CachedSequence, ...]] = []
        self._drafted: set[int] = set()
        """Offsets filled by steps that led to a draft."""

    # Joints of the loop

    def choose(self, laws: Laws) -> Asking[Commit]:
        commit = yield from super().choose(laws)
        hits = self.accepted(commit, [draft for draft, _ in self.known]) if commit.offsets else 0
        if hits:
            commit = _merged([draft.commit for draft, _ in self.known[:hits]])
            self._next, self.known = self.known[hits - 1][1], self.known[hits:]
            self._drafted.update(commit.offsets)
        return commit

    def laws_after(self, commit: Commit, laws: Laws) -> Asking[Laws | None]:
        if not commit.offsets:
            return laws
        if self.state.complete:
            return None
        if self.state.block_filled:
            if not self.eager:
                return (yield from self.next_block())
            self.open_block()
        reached, self._next = self._next, None
        if reached is None:
            return (yield from self.round(laws))
        reached.committed = self.committed
        return reached

    def next_block(self) -> Asking[Laws | None]:
        # The forward that opens a block refreshes the cache, so older copies are of no more use.
        self.known, self._next, self._copies = [], None, []
        return (yield from super().next_block())

    def _wanted(self, canvas: Canvas, start: int, end: int | None) -> list[int]:
        """The offsets whose laws drafts from this state may need."""
        end = self.plan.blocks.end(canvas, start, None) if end is None else end
        if self.eager:
            share = -(-self.plan.length // self.plan.steps)
            reach = end + self.draft_steps * max(share, getattr(self.plan.rule, "tokens", None) or 1)
            while end < min(reach, canvas.length):
                end = self.plan.blocks.end(canvas, end, None)
        return canvas.masked(start, end)

    # Drafts

    def accepted(self, commit: Commit, drafts: Sequence[DraftedState]) -> int:
        """How many of the drafts lie behind the next step, which the laws of the state itself have chosen.

        The next one does if it is reached at the same step, and by the same tokens at the same offsets. By the subset rule the
        last one does of which all that was filled is part of the step.
        """
        if not self.subset:
            number = self.state.number + 1
            same = drafts and drafts[0].state.number == number and drafts[0].commit.filled == commit.filled
            return 1 if same else 0
        filled, hits = commit.filled.items(), 0
        for place, draft in enumerate(drafts, start=1):
            if not draft.commit.filled.items() <= filled:
                break
            hits = place
        return hits

    def guess(self, laws: Laws) -> list[DraftedState]:
        """The states after the present one, as the static decoder would reach them if a step changed no law.

        laws: of the state before. A state that is complete needs no forward, and so no draft.
        """
        laws = laws.at(range(len(laws)))
        laws.chance, laws.committed = self._guessing, self.committed
        state, drafts = self.state.copy(), list[DraftedState]()
        while len(drafts) + 1 < self.draft_steps:
            masked = set(state.canvas.masked(state.start, state.end))
            offered = laws.at([place for place, offset in enumerate(laws.offsets) if offset in masked])
            if len(offered) < len(masked):
                break  # beyond what was scored
            commit = state.advance(offered)
            if state.block_filled:
                if state.complete or not (self.eager and self._goes_on(state)):
                    break
                state.open_block()
            drafts.append(DraftedState(commit, state))
            state = state.copy()
        return drafts

    def _goes_on(self, state: CanvasState) -> bool:
        """Whether decoding goes on behind a block, as far as its tokens tell."""
        return self.plan.early_stop == "never" or self.request.stop_ids.isdisjoint(state.canvas.answer[: state.end])

    def round(self, laws: Laws) -> Asking[Laws]:
        """Forward the present state, and drafts of the next ones with it: the laws of the former; the latter are `known`.

        laws: of the state before.
        """
        drafts = self.guess(laws)
        self.request.statistics.drafted += sum(len(draft.commit.offsets) for draft in drafts)
        states = [self.state, *(draft.state for draft in drafts)]
        asks = [
            self.ask(state.start, state.end, None, state.canvas, copy)
            for state, copy in zip(states, self._copies_for(len(states)), strict=True)
        ]
        answers = yield from (self._side_by_side(asks) if self.layout == "tree" else self._as_batch(asks))
        self.forwards += 1
        mine, *theirs = [ask.laws(answer) for ask, answer in zip(asks, answers, strict=True)]
        self.known = list(zip(drafts, theirs, strict=True))
        return mine

    # Layouts

    def _copies_for(self, count: int) -> list[tuple[CachedSequence, ...]]:
        """The sequences of each state. No accepted copy is kept: copies differ in the rows that are computed alone, and every
        forward computes these anew."""
        if self.layout == "tree":
            return [self.sequences] * count
        self._copies = self._copies or [self.sequences]
        while len(self._copies) < count:
            self._copies.append(tuple(sequence.fork() for sequence in self.sequences))
        return self._copies[:count]

    def _as_batch(self, asks: Sequence[CanvasForwards]) -> Asking[list[list[Scores]]]:
        """Each state in a copy of the cache of its own: the answers to each ask."""
        sides = range(len(self.sequences))
        together = self.layout != "single"
        forwards = [
            replace(ask.forwards[side], joined=together and place > 0)
            for side in sides
            for place, ask in enumerate(asks)
        ]
        answers: list[Scores] = []
        for batch in [forwards] if together else [[forward] for forward in forwards]:
            answers += yield tuple(batch)
        return [answers[place :: len(asks)] for place in range(len(asks))]

    def _side_by_side(self, asks: Sequence[CanvasForwards]) -> Asking[list[list[Scores]]]:
        """The same in one forward: copies of the rows behind the cache, each at the same positions, seeing itself and all
        cached rows but those it stands for."""
        answers = yield tuple(
            _side_by_side([ask.forwards[side] for ask in asks]) for side in range(len(self.sequences))
        )
        parts = [answer.logits.split([len(ask.forwards[0].logit_rows()) for ask in asks]) for answer in answers]
        return [[Scores(logits) for logits in own] for own in zip(*parts, strict=True)]

    # Statistics

    def publish(self, until: int) -> bool:
        first = len(self.published)
        over = super().publish(until)
        drafted = len(self._drafted.intersection(self.published[first:]))
        self.request.statistics.accepted += drafted
        self.request.statistics.bonus -= drafted
        return over


def _side_by_side(forwards: Sequence[Forward]) -> Forward:
    """One forward for several of the same rows of one sequence, none of which sees another or is kept."""
    sequence, rows = forwards[0].sequence, list(forwards[0].written_slots())
    size, cached = len(rows), sequence.length
    mask = torch.zeros(len(forwards) * size, cached + len(forwards) * size, dtype=torch.bool)
    mask[:, :cached] = True
    mask[:, rows] = False
    for first in range(0, len(mask), size):
        mask[first : first + size, cached + first : cached + first + size] = True
    return Forward(
        sequence,
        [int(token) for forward in forwards for token in forward.tokens],
        positions=rows * len(forwards),
        attend=mask,
        slots=Slots.NOWHERE,
        logits=[place * size + row for place, forward in enumerate(forwards) for row in forward.logit_rows()],
    )


def _merged(commits: Sequence[Commit]) -> Commit:
    """Several commits as one."""
    filled = {offset: token for commit in commits for offset, token in commit.filled.items()}
    offsets = tuple(sorted(filled))
    return Commit(offsets, tuple(filled[offset] for offset in offsets))
