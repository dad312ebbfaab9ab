"""Drafting with the first layers and an adapter that looks back, in the target's cache and one of the adapter's own."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery._lazy import torch
from decodery.models.forward import POST_NORM, Forward, Rows, Scores
from decodery.speculative.draft import EMPTY, Draft, Siblings, chain
from decodery.speculative.early_exit import FORBIDDEN, LowerRows, spoken
from decodery.speculative.loop import Drafter, Round

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.scorer import Head, Scorer
    from decodery.models.sequence import Sequence as CachedSequence


@dataclass(frozen=True)
class Voice:
    """What turns a row of the first layers into scores, the same for all requests.

    network: the adapter. head: of the target, without the final norm, for `tokens` alone; None: for all. vocabulary: of the
    target.
    """

    network: Scorer
    head: Head
    tokens: Tensor | None
    vocabulary: int

    def scores(self, row: Tensor) -> Tensor:
        """Scores [vocabulary] of a row [1, hidden] of the adapter; what is never spoken is impossible."""
        scores = self.head(row)[0]
        if self.tokens is None:
            return scores
        whole = torch.full((self.vocabulary,), FORBIDDEN, device=scores.device)
        whole[self.tokens.to(scores.device)] = scores
        return whole


class KangarooDrafter(Drafter):
    """Drafts token by token: first layers, adapter, head. `score` takes the same rows through the other layers, so that each
    row passes every layer once.

    exit: how many first layers draft. length: tokens drafted per round at most. threshold: drafting ends behind a token at
    which the likeliest one is less likely than this.
    """

    def __init__(self, request: Request, voice: Voice, exit: int, length: int, threshold: float):
        self._request, self._voice = request, voice
        self._exit, self._length, self._threshold = exit, length, threshold
        self.taps = (exit - 1,)
        self._own: CachedSequence = request.new_sequence(voice.network)
        """The adapter's keys and values."""
        self._sequence: CachedSequence | None = None
        self._lower: LowerRows | None = None
        """Of the draft that is not verified yet."""
        self.unread: list[Tensor] = []
        """Rows [n, hidden] that left the first layers, for positions behind the adapter's cache."""

    def begin(self, sequence: CachedSequence) -> None:
        self._sequence = sequence

    def propose(self, tokens: Sequence[int], depth: int) -> Draft | Generator[Forward, Scores, Draft]:
        length = min(self._length, depth)
        return self._grow(tokens, length) if length > 0 else EMPTY

    def _grow(self, tokens: Sequence[int], length: int) -> Generator[Forward, Scores, Draft]:
        sequence, request, voice = self._sequence, self._request, self._voice
        assert sequence is not None
        before = self._own.length + sum(map(len, self.unread))
        lower = LowerRows(sequence, self._exit, ())
        drafted: list[int] = []
        q: dict[int, Tensor] = {}
        fed = list(tokens[sequence.length :])
        while True:
            yield from lower.run(fed)
            rows = torch.cat([*self.unread, lower.newest])
            positions = sequence.positions[sequence.length - len(rows) :]
            ask = Forward(self._own, rows, positions, taps=(POST_NORM,), logits=Rows.NONE)
            answer = yield ask
            self.unread = []
            scores = voice.scores(answer.hidden[POST_NORM][-1:])
            request.statistics.count(f"{request.host.network.name} (draft head)", 1, 0)
            token = spoken(request, scores, drafted, q)
            if token is None:
                break
            drafted.append(token)
            sure = float(scores.softmax(dim=-1).max())
            if len(drafted) == length or token in request.stop_ids or sure < self._threshold:
                break
            fed = [token]
        if not drafted:  # the law forbids all that the draft could say: the rows of the first layers are of no use
            sequence.truncate(sequence.length - len(fed))
            self._own.truncate(before)
            return EMPTY
        self._lower = lower
        made = chain(drafted)
        return (
            made if request.law.greedy else Draft(made.tokens, made.parents, q, Siblings.WITH_REPLACEMENT, made.kinds)
        )

    def score(
        self, sequence: CachedSequence, pending: Sequence[int], draft: Draft
    ) -> Generator[Forward, Scores, Scores]:
        lower, self._lower = self._lower, None
        if lower is None:
            scores = yield Forward(sequence, pending, taps=self.taps, logits=(len(pending) - 1,))
            self.unread.append(scores.hidden[self._exit - 1])
            return scores
        # The last drafted token goes through the first layers, too: the target's law after it is needed.
        yield from lower.run([draft.tokens[-1]])
        self.unread = [lower.newest]
        count = len(pending) + len(draft)
        scores, _ = yield from lower.complete(count, (), range(len(pending) - 1, count))
        return scores

    def observe(self, round: Round) -> None:
        drafted = len(round.draft)
        if not drafted:
            return
        kept = len(round.verdict.path)
        if kept < drafted:  # rows of refused tokens: the adapter's own, and the one that it has not read
            self._own.truncate(self._own.length - (drafted - 1 - kept))
            self.unread = []
