"""A window of positions that is filled with an any-order model: what is given, what is decided, and what a forward asks."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.any_order.order import DecodingOrder
from decodery.diffusion.canvas import Canvas
from decodery.diffusion.laws import Laws
from decodery.diffusion.loop import model_of
from decodery.models.forward import Forward

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.forward import Scores


class OrderedWindow:
    """Where a request stands: its prompt, and behind it given tokens and positions to be found, in ascending order.

    length: of what stands behind the prompt, at least that of the request's template. cached: keep keys and values of decided
    tokens; otherwise each forward computes all rows.
    """

    def __init__(self, request: Request, length: int, cached: bool = True):
        self.request, self.output, self.cached = request, request.output, cached
        self.model = model_of(request)
        self.canvas = Canvas(request.prompt, length, self.model)
        mask, start = self.model.mask_token_id, len(request.prompt)
        given = [offset for offset, token in enumerate(request.template) if token != mask]
        self.order = DecodingOrder(
            [*range(start), *(start + offset for offset in given)],
            [start + offset for offset in range(length) if offset not in set(given)],
        )
        self.done = 0
        """How many targets are decided."""
        self.over = False
        """Whether nothing is left to do: all is decided, or the output has ended."""
        self.sequence = request.new_sequence()
        self.step = 0
        self.forwards = 0
        self._counted = 0
        self._from_draft: set[int] = set()
        self._last_given = max(given, default=-1)
        self.output.open_canvas(length)
        if given:
            self._put(given, [request.template[offset] for offset in given])

    # What is asked

    @property
    def left(self) -> int:
        """How many targets are not decided."""
        return len(self.order.targets) - self.done

    def next(self, count: int) -> list[int]:
        """The positions of the next targets."""
        return self.order.targets[self.done : self.done + count]

    def score(self, count: int, drafted: Sequence[int] | None = None) -> Generator[Forward, Scores, Laws]:
        """The laws of the next `count` targets by one forward. drafted: tokens for them, so that each law is given those
        before it; None: all are given what is decided alone."""
        order, start = self.order, self.order.given + self.done
        if not self.cached:
            self.sequence.truncate(0)
        decided = [self.canvas.tokens[position] for position in order.positions[:start]]
        tokens = [*decided, *(drafted or ())]
        ranks = range(start, start + count)
        scores = yield order.forward(self.sequence, tokens, ranks, self.model.mask_token_id, drafted is not None)
        self.sequence.truncate(len(tokens))
        self.forwards += 1
        return self._laws(self.next(count), scores.logits)

    def _laws(self, positions: Sequence[int], logits: Tensor) -> Laws:
        """Without reserved tokens, and before given text without tokens that end a text."""
        rows, start = logits.clone(), len(self.request.prompt)
        rows[:, list(self.model.reserved)] = -float("inf")
        offsets = [position - start for position in positions]
        inside = [place for place, offset in enumerate(offsets) if offset < self._last_given]
        if inside:
            rows[: len(inside), sorted(self.request.stop_ids)] = -float("inf")
        committed = len(self.output.new_tokens)
        return Laws(offsets, rows, self.output.law, self.request.noise, start, committed, self.step)

    # What is decided

    def decide(self, tokens: Sequence[int], rows: Tensor, drafted: Sequence[int] = ()) -> None:
        """Put tokens at the next targets. rows: raw scores [n, vocabulary] that each was chosen by. drafted: the places among
        them of those that came from a draft. The cache keeps the rows of tokens that stand as they were scored."""
        positions, start = self.next(len(tokens)), len(self.request.prompt)
        offsets = [position - start for position in positions]
        self._from_draft.update(offsets[place] for place in drafted)
        if self.request.reads_rows:
            self.canvas.rows.update(zip(offsets, rows, strict=True))
        self._put(offsets, tokens)
        self.done += len(tokens)
        self._publish()
        self.over = self.over or not self.left

    def keep(self, accepted: int) -> None:
        """Forget the rows of drafted tokens but for those of the first ones, which stand."""
        self.sequence.truncate(min(self.sequence.length, self.order.given + self.done + accepted))

    def finish(self) -> None:
        """End the output, where it has not ended by itself."""
        self.output.finish("length")

    def _put(self, offsets: Sequence[int], tokens: Sequence[int]) -> None:
        self.canvas.fill(offsets, tokens, self.step)
        self.output.unmasked(self.step, offsets, tokens)
        self.step += 1

    def _publish(self) -> None:
        """Hand the output what is complete from its beginning on."""
        answer = self.canvas.answer
        for offset in range(len(self.output.new_tokens), self.canvas.complete_until()):
            rounds, self._counted = self.forwards - self._counted, self.forwards
            row = self.canvas.rows.get(offset, torch.empty(0))
            if self.output.commit([answer[offset]], [row], int(offset in self._from_draft), rounds):
                self.over = True
                return
