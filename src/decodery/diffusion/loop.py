"""The loop of masked-diffusion decoding: forward, choose, fill, until the canvas is complete.

`CanvasState` (state.py) is where a decoder stands. `Denoising` drives one: it asks for the laws of the present state, has the
rule choose, and hands what is complete to the request.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from decodery._lazy import torch
from decodery.diffusion.canvas import Canvas
from decodery.diffusion.laws import Laws
from decodery.diffusion.padding import truncate
from decodery.diffusion.state import CanvasState, Plan
from decodery.diffusion.unmasking.base import Asking, Commit
from decodery.models.forward import Attend, Forward

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.output import Output
    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.models.masked_diffusion import MaskedDiffusion
    from decodery.models.sequence import Sequence as CachedSequence
    from decodery.sampling.law import Law
    from decodery.sampling.noise import Chance

CONSTRAINT = "structured_outputs"
"""The step of the law that holds texts to a constraint."""


@dataclass(frozen=True, slots=True)
class CanvasForwards:
    """Forwards of one canvas, and what makes laws of their answers."""

    forwards: tuple[Forward, ...]
    laws: Callable[[Sequence[Scores]], Laws]


class Denoising:
    """One canvas on its way. Wrappers of whole decoders override `choose` or `laws_after`, or use `score`, `fill` and
    `publish` directly; who needs hidden rows names `taps` and overrides `keep_rows`.

    output: what is complete is committed to; by default the request's. Several canvases are tries, each with a fork of it, for
    the caller to choose among (`Request.conclude`). chance, law: noise and processed law; by default the request's and the
    output's.
    """

    taps: tuple[int, ...] = ()
    """Layers whose rows every forward brings."""

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
        if plan.completion is not None:
            # It knows of a canvas what the law's own step knows of a text from left to right.
            self.output.law = self.output.law.without(CONSTRAINT)
            law = None if law is None else law.without(CONSTRAINT)
        self.law = self.output.law if law is None else law
        self.model = model_of(request)
        self.state = CanvasState(plan, Canvas(request.prompt, plan.length, self.model))
        self.published: list[int] = []
        """The offsets whose tokens are the output so far, ascending."""
        self.padding: dict[str, Any] | None = None
        """Of models with pads: whether one was written and no end token (yet), and how many stand within the text."""
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

    @property
    def canvas(self) -> Canvas:
        """Prompt and canvas, as far as it is filled."""
        return self.state.canvas

    # Scoring

    def score(self, start: int, end: int | None, offsets: Sequence[int] | None = None) -> Asking[Laws]:
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
    ) -> CanvasForwards:
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
            Forward(
                sequence, tokens[rows.start : rows.stop], attend=Attend.FULL, slots=rows, logits=asked, taps=self.taps
            )
            for sequence, tokens in zip(sequences or self.sequences, (canvas.tokens, hidden), strict=False)
        )
        held = self.held(canvas, [*carried, *inside])

        def laws(answers: Sequence[Scores]) -> Laws:
            self.keep_rows(rows, answers)
            scores = self.guided([answer.logits for answer in answers]).float()
            if end is None and self.model.shift and inside:
                self._carried = {inside[0]: scores[0]}
            if carried:
                scores = torch.cat([torch.stack([self._carried[offset] for offset in carried]), scores])
            return held(scores)

        return CanvasForwards(forwards, laws)

    def held(self, canvas: Canvas, offsets: Sequence[int]) -> Callable[[Tensor], Laws]:
        """What makes laws of raw scores [m, vocabulary] of these masked offsets, ascending, on the canvas as it is now: without
        what no law may give there."""
        early = sum(offset < self.request.settings.min_new_tokens for offset in offsets)
        committed, number = self.committed, self.state.number
        completion = self.plan.completion
        allowed = None if completion is None else completion.allowed(canvas, offsets)

        def laws(scores: Tensor) -> Laws:
            scores = scores.clone()
            scores[:, self._banned] = -float("inf")
            if early:  # pads end a text as well
                scores[:early, list(self.model.filling_token_ids)] = -float("inf")
            if allowed is not None:
                scores.masked_fill_(~allowed.to(scores.device), -float("inf"))
            return Laws(offsets, scores, self.law, self.chance, canvas.prompt, committed, number)

        return laws

    def keep_rows(self, rows: range, answers: Sequence[Scores]) -> None:
        """Keep what is needed of the tapped rows of a forward. rows: those of prompt and canvas that it computed. answers: with
        guidance that of the canvas, then that behind a masked prompt."""

    def _wanted(self, canvas: Canvas, start: int, end: int | None) -> list[int]:
        if self.plan.rule.whole_canvas or (end is None and self.plan.blocks.looks_ahead):
            return canvas.masked()
        return canvas.masked(start, self.plan.blocks.end(canvas, start, None) if end is None else end)

    def guided(self, answers: Sequence[Tensor]) -> Tensor:
        """Of raw scores, or of the rows that they are products of, the ones that guidance makes of both."""
        if len(answers) == 1:
            return answers[0]
        conditional, unconditional = answers
        return unconditional + (self.plan.cfg_scale + 1) * (conditional - unconditional)

    # Filling

    def choose(self, laws: Laws) -> Asking[Commit]:
        """What the next step fills, given the laws of the state."""
        commit = self.state.choose(laws)
        return self.state.settled((yield from commit), laws) if isinstance(commit, Generator) else commit

    def fill(self, commit: Commit, laws: Laws | None = None) -> None:
        """Take one step: put a commit on the canvas, tell of it, and end where the plan says so. laws: those it was chosen
        by."""
        state, number = self.state, self.state.number
        state.take(commit)
        if self.request.reads_rows and laws is not None:
            rows = {offset: laws.scores[place] for place, offset in enumerate(laws.offsets)}
            self.canvas.rows.update({offset: rows[offset] for offset in commit.offsets if offset in rows})
        if commit.offsets:
            self.output.unmasked(number, commit.offsets, commit.tokens)
        if self.plan.early_stop == "prefix":
            self._end_at(self.canvas.complete_until())
        elif self.plan.early_stop == "block" and state.block_filled:
            self._end_at(state.end)

    def _end_at(self, until: int) -> None:
        """Publish the offsets before `until`, and note whether that is the end."""
        self.over = self.publish(until)

    # The output

    def publish(self, until: int) -> bool:
        """Commit what is text before offset `until`; True when the output is over."""
        output, first = self.output, self.published[-1] + 1 if self.published else 0
        if output.finish_reason is not None or until <= first:
            return output.finish_reason is not None
        answer, before = self.canvas.answer, len(output.new_tokens)
        offsets = [offset for offset in self._readable(answer) if first <= offset < until]
        empty = torch.empty(0)
        rows = [self.canvas.rows.get(offset, empty) for offset in offsets]
        rounds, self._counted = self.forwards - self._counted, self.forwards
        over = output.commit([answer[offset] for offset in offsets], rows, rounds=rounds)
        self.published += offsets[: len(output.new_tokens) - before]
        return over

    def _readable(self, answer: Sequence[int]) -> Sequence[int]:
        """The offsets of text and end token. Pads are none: they are skipped, and where no end token has been written (yet),
        the text goes up to the first of them."""
        pads = self.model.filling_token_ids
        if not pads:
            return range(len(answer))
        if self.request.settings.ignore_eos:
            return [offset for offset, token in enumerate(answer) if token not in pads]
        reading = truncate(answer, self.request.stop_ids, pads)
        self.padding = {"no_end": reading.padded, "stray": reading.stray}
        if self.output.place is not None:  # otherwise whoever chooses among tries tells of the one that is chosen
            self.request.statistics.details["padding"] = self.padding
        return reading.output

    def _finish(self, until: int) -> None:
        """Publish the offsets before `until`, and end the output: at a pad in place of an end token, or with the canvas."""
        self.publish(until)
        self.output.finish("stop" if self.padding is not None and self.padding["no_end"] else "length")

    # The loop

    def run(self, laws: Laws | None = None) -> Asking[Canvas]:
        """Decode the canvas; returns it. Ends early where the output does. laws: of the present state, if it is scored."""
        if laws is None:
            laws = yield from self.next_block()
        while laws is not None:
            commit = yield from self.choose(laws)
            self.fill(commit, laws)
            laws = None if self.over else (yield from self.laws_after(commit, laws))
        if not self.over:
            self._finish(self.canvas.length)
        return self.canvas

    def laws_after(self, commit: Commit, laws: Laws) -> Asking[Laws | None]:
        """The laws of the state that a commit has led to; None where nothing is left to fill. laws: of the state before."""
        if not commit.offsets:
            return laws  # the canvas is what it was, and so are its laws: no forward is needed
        if self.state.block_filled:
            return (yield from self.next_block())
        return (yield from self.score(self.state.start, self.state.end))

    def next_block(self) -> Asking[Laws | None]:
        """Open the next block: the laws of its first forward; None where nothing is left to fill."""
        if self.state.complete:
            return None
        if not self.plan.blocks.looks_ahead:
            self.open_block()
            return (yield from self.score(self.state.start, None))
        laws = yield from self.score(self.state.end, None)
        self.open_block(laws)
        return laws

    def open_block(self, laws: Laws | None = None) -> None:
        """Begin the next block, and tell where it ends. laws: where the schedule looks ahead."""
        self.state.open_block(laws)
        self.output.block_ends.append(self.state.end)


def model_of(request: Request) -> MaskedDiffusion:
    """The description of the request's masked-diffusion model."""
    network = request.host.network
    if network.masked is None:
        raise ValueError(f"{network.name} is no masked-diffusion model")
    return network.masked
