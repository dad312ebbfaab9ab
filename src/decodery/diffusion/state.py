"""The state machine of masked-diffusion decoding: what is planned, and where a decoder stands. No network is known here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from decodery.diffusion.blocks import BlockSchedule, FixedBlocks
from decodery.diffusion.caches import CacheRegime, EveryRow
from decodery.diffusion.completion import Completion
from decodery.diffusion.unmasking.base import Asking, CanvasStep, Commit, Rule

if TYPE_CHECKING:
    from decodery.diffusion.canvas import Canvas
    from decodery.diffusion.laws import Laws


@dataclass(frozen=True)
class Plan:
    """How a canvas is to be decoded.

    rule, blocks: see there. cache: of this request. length: of the canvas. steps: planned for the whole canvas; a block gets
    its share. cfg_scale: guidance s, the scores being u + (s + 1) (c - u) with u those behind a masked prompt. early_stop:
    "block" ends at a complete block that holds an end token, "prefix" as soon as everything up to an end token is filled (the
    text is the same, since filled positions stay), "never" fills the whole canvas. shift_row: whether a shifted model's row
    before the computed ones is carried over ("carry") or computed with them ("compute"). forbidden: tokens that no law gives,
    beside the reserved ones. completion: what the text is held to; None: any text.
    """

    rule: Rule
    length: int
    steps: int
    blocks: BlockSchedule
    cache: CacheRegime = field(default_factory=EveryRow)
    cfg_scale: float = 0.0
    early_stop: str = "block"
    shift_row: str = "carry"
    forbidden: tuple[int, ...] = ()
    completion: Completion | None = None

    def __post_init__(self) -> None:
        if self.length < 1 or self.steps < 1:
            raise ValueError(f"a canvas needs at least one position and one step, not {self.length} and {self.steps}")

    def planned(self, start: int, end: int) -> int:
        """Steps of the block [start, end): its share of all steps, at least one."""
        return max(1, self.steps * (end - start) // self.length)

    @classmethod
    def whole(cls, rule: Rule, length: int, **more: Any) -> Plan:
        """Without blocks, one step per token."""
        return cls(rule, length, length, FixedBlocks(length), **more)


@dataclass
class CanvasState:
    """Where a decoder of a plan stands between two steps.

    number: steps taken. start, end: the block that is being filled; none is open yet where they are equal. in_block: steps
    taken in it. masks: offsets that were masked when it began. idle: steps since one filled something.
    """

    plan: Plan
    canvas: Canvas
    number: int = 0
    start: int = 0
    end: int = 0
    in_block: int = 0
    masks: int = 0
    idle: int = 0

    def copy(self) -> CanvasState:
        """An independent copy, to be stepped by way of trial."""
        return replace(self, canvas=self.canvas.copy())

    @property
    def complete(self) -> bool:
        """Whether nothing is left to fill."""
        return not self.canvas.masked()

    @property
    def block_filled(self) -> bool:
        """Whether the block is filled, and the next one can be opened."""
        return not self.canvas.masked(self.start, self.end)

    def open_block(self, laws: Laws | None = None) -> None:
        """Begin the next block. laws: of the forward that opens it, where the schedule looks ahead.

        Blocks that a rule has filled ahead are passed over, where no forward is needed to tell.
        """
        blocks, canvas = self.plan.blocks, self.canvas
        while True:
            start, end = self.end, blocks.end(canvas, self.end, laws)
            if not start < end <= canvas.length:
                raise ValueError(f"a block that begins at {start} of {canvas.length} cannot end at {end}")
            self.start, self.end, self.in_block, self.idle = start, end, 0, 0
            self.masks = len(canvas.masked(start, end))
            if self.masks or blocks.looks_ahead:
                return

    def step(self) -> CanvasStep:
        """The next step, as rules are told of it."""
        planned = self.plan.planned(self.start, self.end)
        return CanvasStep(self.number, self.in_block, planned, self.masks, self.start, self.end, self.plan.steps)

    def choose(self, laws: Laws) -> Commit | Asking[Commit]:
        """What the plan's rule fills in the next step; a generator of it where the rule runs a network."""
        offered = laws if self.plan.rule.whole_canvas else laws.within(self.start, self.end)
        commit = self.plan.rule.choose(offered, self.step())
        return self.settled(commit, laws) if isinstance(commit, Commit) else commit

    def settled(self, commit: Commit, laws: Laws) -> Commit:
        """What a rule would fill, as far as the constraint lets it stand together. laws: those it was chosen by."""
        return commit if self.plan.completion is None else self.plan.completion.settled(self.canvas, commit, laws)

    def take(self, commit: Commit) -> None:
        """Take a step. Raises RuntimeError where too many of them have filled nothing."""
        self.canvas.fill(commit.offsets, commit.tokens, self.number)
        self.number += 1
        self.in_block += 1
        self.idle = 0 if commit.offsets else self.idle + 1
        if self.idle > self.plan.planned(self.start, self.end) + 1:
            raise RuntimeError(f"{type(self.plan.rule).__name__} fills nothing, and the canvas is not complete")

    def advance(self, laws: Laws) -> Commit:
        """Take steps until one has filled something, by a rule without a network, and return what that was. While nothing is
        filled, the laws stay those of the canvas."""
        while True:
            commit = self.choose(laws)
            assert isinstance(commit, Commit), "a rule that runs a network cannot be tried"
            self.take(commit)
            if commit.offsets:
                return commit
