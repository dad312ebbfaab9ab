"""The loop of FreeDave: a static decoder of a canvas that drafts its own next states and has them forwarded together.

Free Draft-and-Verification, 2025, arXiv 2510.00294.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from decodery._lazy import torch
from decodery.diffusion.laws import Laws
from decodery.diffusion.loop import Ask, Denoising, Plan
from decodery.diffusion.unmasking.base import Commit, Step
from decodery.models.forward import Forward, Scores, Slots

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.diffusion.canvas import Canvas
    from decodery.engine.request import Request
    from decodery.models.sequence import Sequence as CachedSequence
    from decodery.sampling.noise import Chance, Index, Stage

Answering = Generator[tuple[Forward, ...], tuple[Scores, ...], list[list[Scores]]]
"""Yields forwards, returns the answers to each ask."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the static decoder stands between two steps: its block [start, end), the steps it has taken there, and how many
    masks the block began with."""

    start: int
    end: int
    in_block: int
    masks: int


@dataclass(frozen=True, slots=True)
class StaticStep:
    """What the static decoder does in one step that fills something, after `idle` steps that fill nothing."""

    idle: int
    commit: Commit

    @property
    def filled(self) -> dict[int, int]:
        """Offset -> token."""
        return dict(zip(self.commit.offsets, self.commit.tokens, strict=True))


@dataclass(frozen=True, slots=True)
class Draft:
    """A guess at a state of the canvas; step: by which it follows from the one before."""

    step: StaticStep
    canvas: Canvas
    place: Place


@dataclass(frozen=True, slots=True)
class Likeliest:
    """A chance without noise: whatever is likeliest."""

    def choose(
        self, probabilities: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()
    ) -> int:
        return int(probabilities.argmax())

    def accept(self, probability: float, position: int, index: Index = 0) -> bool:
        return probability > 0.5

    def race(self, log_weights: Tensor, position: int, stage: Stage, index: Index = 0, path: Sequence[int] = ()) -> int:
        return int(log_weights.argmax())


class Drafting(Denoising):
    """The static decoder of a plan, which finds the forwards of most of its states made already.

    Every state is one that the static decoder visits, and its laws are those of a forward of exactly this canvas: by itself,
    or as a draft that turned out to be it. The plan's blocks must not look ahead, nor its rule at the whole canvas.

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
        self._copies: list[tuple[CachedSequence, ...]] = []
        self._accepted: set[int] = set()

    # The static decoder

    def run(self) -> Generator[Forward | tuple[Forward, ...], Any, Canvas]:
        canvas = self.canvas
        place: Place | None = self._opened(canvas, 0)
        assert place is not None
        laws = yield from self._open(place)
        known: list[tuple[Draft, Laws]] = []
        while True:
            block_end = place.end
            step = self.static_step(laws.within(place.start, place.end), place, self.number)
            hits = self.accepted(step, [draft for draft, _ in known])
            if hits:
                step = _merged([draft.step for draft, _ in known[:hits]])
                self._accepted.update(step.commit.offsets)
            self.number += step.idle
            self.fill(step.commit, laws)
            place = self._after(canvas, place, step)
            if self.publishing and (place is None or place.in_block == 0) and self.plan.early_stop == "block":
                self.publish(block_end)
            if self.request.finish_reason is not None:
                return canvas
            if place is None:
                break
            if hits:
                laws, known = known[hits - 1][1], known[hits:]
                laws.committed = len(self.request.new_tokens)
            elif place.in_block == 0 and not self.eager:
                laws, known = (yield from self._open(place)), []
            else:
                laws, known = yield from self._round(laws, place)
        if self.publishing:
            self.publish(canvas.length)
            self.request.finish("length")
        return canvas

    def static_step(self, laws: Laws, place: Place, number: int) -> StaticStep:
        """What the static decoder does next, given the laws of the block's masked offsets. number: steps taken."""
        planned = self.plan.planned(place.start, place.end)
        for idle in range(planned + 2):
            in_block = place.in_block + idle
            step = Step(number + idle, in_block, planned, place.masks, place.start, place.end, self.plan.steps)
            commit = self.plan.rule.choose(laws, step)
            assert isinstance(commit, Commit), "a rule that runs a network cannot be drafted"
            if commit.offsets:
                return StaticStep(idle, commit)
        raise RuntimeError(f"{type(self.plan.rule).__name__} fills nothing, and the canvas is not complete")

    def _opened(self, canvas: Canvas, start: int) -> Place | None:
        if start >= canvas.length:
            return None
        end = self.plan.blocks.end(canvas, start, None)
        return Place(start, end, 0, len(canvas.masked(start, end)))

    def _after(self, canvas: Canvas, place: Place, step: StaticStep) -> Place | None:
        """Where the static decoder stands after a step; None where the canvas is complete."""
        if canvas.masked(place.start, place.end):
            return replace(place, in_block=place.in_block + step.idle + 1)
        return self._opened(canvas, place.end)

    def _open(self, place: Place) -> Generator[Forward | tuple[Forward, ...], Any, Laws]:
        """The forward that opens a block. It refreshes the cache, so older copies are of no more use."""
        self._copies = []
        return (yield from self.score(place.start, None, self._offered(self.canvas, place)))

    def _offered(self, canvas: Canvas, place: Place) -> list[int]:
        """The offsets whose laws drafts from this state may need."""
        end = place.end
        if self.eager:
            share = -(-self.plan.length // self.plan.steps)
            reach = end + self.draft_steps * max(share, getattr(self.plan.rule, "tokens", None) or 1)
            while end < min(reach, canvas.length):
                end = self.plan.blocks.end(canvas, end, None)
        return canvas.masked(place.start, end)

    # Drafts

    def accepted(self, step: StaticStep, drafts: Sequence[Draft]) -> int:
        """How many of the drafts lie behind this step, which the laws of the state itself have chosen.

        The next one does if it fills the same offsets with the same tokens. By the subset rule the last one does of which all
        that was filled is part of the step.
        """
        if not self.subset:
            same = bool(drafts) and drafts[0].step.idle == step.idle and drafts[0].step.filled == step.filled
            return 1 if same else 0
        filled = step.filled.items()
        hits = 0
        for place, draft in enumerate(drafts, start=1):
            if not draft.step.filled.items() <= filled:
                break
            hits = place
        return hits

    def guess(self, laws: Laws, place: Place) -> list[Draft]:
        """The states after the present one, as the static decoder would reach them if a step changed no law.

        laws: of the state before. A state that is complete needs no forward, and so no draft.
        """
        laws = laws.at(range(len(laws)))
        laws.chance, laws.committed = self._guessing, len(self.request.new_tokens)
        canvas, number = self.canvas, self.number
        drafts: list[Draft] = []
        while len(drafts) + 1 < self.draft_steps:
            masked = set(canvas.masked(place.start, place.end))
            offered = laws.at([at for at, offset in enumerate(laws.offsets) if offset in masked])
            if len(offered) < len(masked):
                break  # beyond what was scored
            step = self.static_step(offered, place, number)
            canvas = canvas.copy()
            canvas.fill(step.commit.offsets, step.commit.tokens, number + step.idle)
            number += step.idle + 1
            after = self._after(canvas, place, step)
            if after is None or (after.in_block == 0 and not (self.eager and self._goes_on(canvas, after.start))):
                break
            drafts.append(Draft(step, canvas, after))
            place = after
        return drafts

    def _goes_on(self, canvas: Canvas, until: int) -> bool:
        """Whether decoding goes on behind these offsets, as far as their tokens tell."""
        return self.plan.early_stop == "never" or self.request.stop_ids.isdisjoint(canvas.answer[:until])

    def _round(
        self, laws: Laws, place: Place
    ) -> Generator[Forward | tuple[Forward, ...], Any, tuple[Laws, list[tuple[Draft, Laws]]]]:
        """Forward the present state and drafts of the next ones: the laws of the former, and the latter with theirs.

        laws: of the state before.
        """
        drafts = self.guess(laws, place)
        self.request.statistics.drafted += sum(len(draft.step.commit.offsets) for draft in drafts)
        states = [(self.canvas, place), *((draft.canvas, draft.place) for draft in drafts)]
        copies = self._copies_for(len(states))
        asks = [
            self.ask(at.start, at.end, self._offered(canvas, at), canvas, copy)
            for (canvas, at), copy in zip(states, copies, strict=True)
        ]
        answers = yield from (self._side_by_side(asks) if self.layout == "tree" else self._as_batch(asks))
        self.forwards += 1
        mine, *theirs = [ask.laws(answer) for ask, answer in zip(asks, answers, strict=True)]
        return mine, list(zip(drafts, theirs, strict=True))

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

    def _as_batch(self, asks: Sequence[Ask]) -> Answering:
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

    def _side_by_side(self, asks: Sequence[Ask]) -> Answering:
        """The same in one forward: copies of the rows behind the cache, each at the same positions, seeing itself and all
        cached rows but those it stands for."""
        answers = yield tuple(
            _side_by_side([ask.forwards[side] for ask in asks]) for side in range(len(self.sequences))
        )
        parts = [answer.logits.split([len(ask.forwards[0].logit_rows()) for ask in asks]) for answer in answers]
        return [[Scores(logits) for logits in own] for own in zip(*parts, strict=True)]

    # Statistics

    def publish(self, until: int) -> bool:
        first = len(self.request.new_tokens)
        over = super().publish(until)
        drafted = len(self._accepted.intersection(range(first, len(self.request.new_tokens))))
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


def _merged(steps: Sequence[StaticStep]) -> StaticStep:
    """Several steps as one."""
    filled: dict[int, int] = {}
    for step in steps:
        filled.update(step.filled)
    offsets = tuple(sorted(filled))
    return StaticStep(steps[0].idle, Commit(offsets, tuple(filled[offset] for offset in offsets)))
