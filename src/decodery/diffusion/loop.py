"""The loop of masked-diffusion decoding: forward, choose, fill, until the canvas is complete."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from decodery._lazy import torch
from decodery.diffusion.blocks import BlockSchedule, FixedBlocks
from decodery.diffusion.caches.base import CacheRegime, NoCache
from decodery.diffusion.canvas import Canvas
from decodery.diffusion.laws import Laws
from decodery.diffusion.unmasking.base import Commit, Rule, Step
from decodery.models.forward import Attend, Forward

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.method import Decoding
    from decodery.engine.output import Output
    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.models.masked_diffusion import MaskedDiffusion
    from decodery.models.sequence import Sequence as CachedSequence
    from decodery.sampling.law import Law
    from decodery.sampling.noise import Chance

Result = TypeVar("Result")
Scoring = Generator[Forward | tuple[Forward, ...], Any, Laws]
"""Yields forwards, returns laws."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Forwards of one canvas, and what makes laws of their answers."""

    forwards: tuple[Forward, ...]
    laws: Callable[[Sequence[Scores]], Laws]


@dataclass(frozen=True)
class Plan:
    """How a canvas is to be decoded.

    rule, blocks: see there. cache: of this request. length: of the canvas. steps: planned for the whole canvas; a block gets
    its share. cfg_scale: guidance s, the scores being u + (s + 1) (c - u) with u those behind a masked prompt. early_stop:
    "block" ends at a complete block that holds an end token, "prefix" as soon as everything up to an end token is filled (the
    text is the same, since filled positions stay), "never" fills the whole canvas. shift_row: whether a shifted model's row
    before the computed ones is carried over ("carry") or computed with them ("compute"). forbidden: tokens that no law gives,
    beside the reserved ones.
    """

    rule: Rule
    length: int
    steps: int
    blocks: BlockSchedule
    cache: CacheRegime = field(default_factory=NoCache)
    cfg_scale: float = 0.0
    early_stop: str = "block"
    shift_row: str = "carry"
    forbidden: tuple[int, ...] = ()

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


class Denoising:
    """One canvas on its way. Wrappers of whole decoders override `fill_block`, or use `score`, `fill` and `publish` directly.

    output: what is complete is committed to; by default the request's. Several canvases are tries, each with a fork of it, for
    the caller to choose among (`Request.conclude`). chance, law: noise and processed law; by default the request's and the
    output's.
    """

    def __init__(
        self,
        request: Request,
        plan: Plan,
        chance: Chance | None = None,
        output: Output | None = None,
        law: Law | None = None,
    ):
        self.request, self.plan = request, plan
        self.output = request.output if output is None else output
        self.chance = request.noise if chance is None else chance
        self.law = self.output.law if law is None else law
        self.model = model_of(request)
        self.canvas = Canvas(request.prompt, plan.length, self.model)
        self.number = 0
        """Steps taken."""
        self.over = False
        """Whether nothing is left to do though positions are masked: by `early_stop` or by a setting of the request."""
        self.sequences: tuple[CachedSequence, ...] = tuple(
            request.new_sequence() for _ in range(2 if plan.cfg_scale else 1)
        )
        """The cache of prompt and canvas; with guidance also the one behind a masked prompt."""
        self._banned = sorted({*self.model.reserved, *plan.forbidden})
        self._carried: dict[int, Tensor] = {}
        self.forwards = 0
        """Forwards so far; guidance does not count double here."""
        self._counted = 0
        self.output.open_canvas(plan.length)

    @property
    def committed(self) -> int:
        """How many tokens of the canvas its law has observed."""
        return len(self.output.new_tokens) if self.law is self.output.law else 0

    # Scoring

    def score(self, start: int, end: int | None, offsets: Sequence[int] | None = None) -> Scoring:
        """The laws of masked offsets of the canvas, by one forward of the rows that the cache regime names; see `ask`."""
        ask = self.ask(start, end, offsets)
        answers = yield ask.forwards
        self.forwards += 1
        return ask.laws(answers)

    def ask(
        self,
        start: int,
        end: int | None,
        offsets: Sequence[int] | None = None,
        canvas: Canvas | None = None,
        sequences: Sequence[CachedSequence] | None = None,
    ) -> Ask:
        """What `score` asks for and what it makes of the answer, for those who put several asks into one step.

        start, end: the current block; end is None for the forward that opens it. offsets: those wanted, by default all that
        the plan's rule may look at; those whose rows are not computed are left out. canvas, sequences: a trial, scored in
        forks of `sequences`; by default the canvas itself in its own. Whoever yields the forwards counts them (`forwards`).
        """
        canvas = self.canvas if canvas is None else canvas
        rows = self.plan.cache.rows(canvas, start, end)
        if self.model.shift and self.plan.shift_row == "compute":
            rows = range(max(rows.start - 1, 0), rows.stop)
        wanted = self._wanted(canvas, start, end) if offsets is None else list(offsets)
        row_of = {offset: canvas.prompt + offset - self.model.shift for offset in wanted}
        inside = [offset for offset in wanted if row_of[offset] in rows]
        carried = [offset for offset in wanted if row_of[offset] not in rows and offset in self._carried]
        asked = [row_of[offset] - rows.start for offset in inside]
        hidden = [self.model.mask_token_id] * canvas.prompt + canvas.answer
        forwards = tuple(
            Forward(sequence, tokens[rows.start : rows.stop], attend=Attend.FULL, slots=rows, logits=asked)
            for sequence, tokens in zip(sequences or self.sequences, (canvas.tokens, hidden), strict=False)
        )
        committed, number = self.committed, self.number

        def laws(answers: Sequence[Scores]) -> Laws:
            scores = self._guided([answer.logits for answer in answers]).float()
            scores[:, self._banned] = -float("inf")
            if end is None and self.model.shift and inside:
                self._carried = {inside[0]: scores[0]}
            if carried:
                scores = torch.cat([torch.stack([self._carried[offset] for offset in carried]), scores])
            return Laws([*carried, *inside], scores, self.law, self.chance, canvas.prompt, committed, number)

        return Ask(forwards, laws)

    def _wanted(self, canvas: Canvas, start: int, end: int | None) -> list[int]:
        if self.plan.rule.whole_canvas or (end is None and self.plan.blocks.looks_ahead):
            return canvas.masked()
        return canvas.masked(start, self.plan.blocks.end(canvas, start, None) if end is None else end)

    def _guided(self, logits: Sequence[Tensor]) -> Tensor:
        if len(logits) == 1:
            return logits[0].clone()
        conditional, unconditional = logits
        return unconditional + (self.plan.cfg_scale + 1) * (conditional - unconditional)

    # Filling

    def fill(self, commit: Commit, laws: Laws | None = None) -> None:
        """Take one step: put a commit on the canvas and tell of it. laws: those it was chosen by."""
        self.canvas.fill(commit.offsets, commit.tokens, self.number)
        if self.request.reads_rows and laws is not None:
            rows = {offset: laws.scores[place] for place, offset in enumerate(laws.offsets)}
            self.canvas.rows.update({offset: rows[offset] for offset in commit.offsets if offset in rows})
        if commit.offsets:
            self.output.unmasked(self.number, commit.offsets, commit.tokens)
        self.number += 1
        if self.plan.early_stop == "prefix":
            self._end_at(self.canvas.complete_until())

    def publish(self, until: int) -> bool:
        """Commit the offsets before `until`; True when the output is over."""
        first = len(self.output.new_tokens)
        if self.output.finish_reason is not None or until <= first:
            return self.output.finish_reason is not None
        tokens = self.canvas.answer[first:until]
        empty = torch.empty(0)
        rows = [self.canvas.rows.get(offset, empty) for offset in range(first, until)]
        rounds, self._counted = self.forwards - self._counted, self.forwards
        return self.output.commit(tokens, rows, rounds=rounds)

    def _end_at(self, until: int) -> None:
        """Publish the offsets before `until`, and note whether that is the end."""
        self.over = self.publish(until)

    def run(self) -> Generator[Forward | tuple[Forward, ...], Any, Canvas]:
        """Decode the canvas; returns it. Ends early where the output does."""
        canvas, plan, start = self.canvas, self.plan, 0
        while start < canvas.length and canvas.masked():
            if not plan.blocks.looks_ahead:
                end = plan.blocks.end(canvas, start, None)
                if not canvas.masked(start, end):  # a rule that sees the whole canvas has filled it already
                    start = end
                    continue
            laws = yield from self.score(start, None)
            if plan.blocks.looks_ahead:
                end = plan.blocks.end(canvas, start, laws)
            if not start < end <= canvas.length:
                raise ValueError(f"a block that begins at {start} of {canvas.length} cannot end at {end}")
            self.output.block_ends.append(end)
            yield from self.fill_block(laws, start, end)
            if plan.early_stop == "block":
                self._end_at(end)
            if self.over:
                return canvas
            start = end
        self.publish(canvas.length)
        self.output.finish("length")
        return canvas

    def fill_block(self, laws: Laws, start: int, end: int) -> Decoding:
        """Fill the block [start, end), given the laws of the forward that opened it."""
        masks, in_block, idle = len(self.canvas.masked(start, end)), 0, 0
        planned = self.plan.planned(start, end)
        while True:
            step = Step(self.number, in_block, planned, masks, start, end, self.plan.steps)
            offered = laws if self.plan.rule.whole_canvas else laws.within(start, end)
            commit = self.plan.rule.choose(offered, step)
            if isinstance(commit, Generator):
                commit = yield from commit
            self.fill(commit, laws)
            in_block += 1
            if self.over or not self.canvas.masked(start, end):
                return
            if commit.offsets:
                idle = 0
                laws = yield from self.score(start, end)
            else:
                # The canvas is what it was, and so are its laws: no forward is needed.
                idle += 1
                if idle > planned + 1:
                    raise RuntimeError(f"{type(self.plan.rule).__name__} fills nothing, and the canvas is not complete")


def model_of(request: Request) -> MaskedDiffusion:
    """The description of the request's masked-diffusion model."""
    network = request.host.network
    if network.masked is None:
        raise ValueError(f"{network.name} is no masked-diffusion model")
    return network.masked


def together(
    runs: Sequence[Generator[Forward | tuple[Forward, ...], Any, Result]],
) -> Generator[tuple[Forward, ...], Any, list[Result]]:
    """Several runs in step: what they ask for at the same time is scored in one pass. Returns what each returns."""
    results: dict[int, Result] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(runs)))
    while answers:
        asks: dict[int, Forward | tuple[Forward, ...]] = {}
        for place, answer in answers.items():
            try:
                asks[place] = runs[place].send(answer)
            except StopIteration as over:
                results[place] = over.value
        flat = [forward for ask in asks.values() for forward in (ask if isinstance(ask, tuple) else (ask,))]
        given = iter((yield tuple(flat)) if flat else ())
        answers = {
            place: tuple(next(given) for _ in ask) if isinstance(ask, tuple) else next(given)
            for place, ask in asks.items()
        }
    return [results[place] for place in range(len(runs))]
