"""Drafting with the first layers: what they say, the rows that the others go on from, and what each exit would have said."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from decodery._lazy import torch
from decodery.models.forward import Forward, Scores
from decodery.speculative.del_.exit_choice import PLAIN_INTERVAL, ExitPrice, ExitStatistics
from decodery.speculative.draft import EMPTY, Draft, Siblings, chain
from decodery.speculative.early_exit import FORBIDDEN, LowerRows, spoken
from decodery.speculative.loop import Drafter, Round

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.scorer import Head
    from decodery.models.sequence import Sequence as CachedSequence
    from decodery.speculative.del_.exits import ExitAdapters


@dataclass(frozen=True)
class Speech:
    """How an exit speaks. head: of the whole vocabulary, or of the adapters' tokens."""

    head: Head
    adapters: ExitAdapters | None
    vocabulary: int

    def logits(self, rows: dict[int, Tensor]) -> Tensor:
        """Scores [exits * n, tokens spoken] of rows [n, hidden] of several exits, one exit after the other."""
        if self.adapters is None:
            return self.head(torch.cat(list(rows.values())))
        return self.head(torch.cat([self.adapters.apply(exit, part) for exit, part in rows.items()]))

    def whole(self, row: Tensor) -> Tensor:
        """A row of scores over the whole vocabulary; what is never spoken is impossible."""
        if self.adapters is None:
            return row
        scores = torch.full((self.vocabulary,), FORBIDDEN, device=row.device)
        scores[self.adapters.tokens.to(row.device)] = row
        return scores

    def ids(self, places: Tensor) -> Tensor:
        """Token ids of places in a row of scores."""
        return places if self.adapters is None else self.adapters.tokens.to(places.device)[places]


@dataclass(frozen=True)
class Options:
    """How it is drafted.

    exit, length: where they are always the same. most: tokens drafted at most. by_threshold: a token less likely than the
    exit's threshold ends a draft. context: prompt positions that count in the first round. bypass: draft nothing where that
    has the most tokens per layer. clip: do not count what was drafted after a wrong token.
    """

    exit: int | None
    length: int | None
    most: int
    by_threshold: bool
    context: int
    bypass: bool
    clip: bool


class Watch:
    """Which rounds are shown to all exits: the first, those with a draft, and now and then a plain one. wanted: any at all."""

    def __init__(self, wanted: bool):
        self._wanted = wanted
        self.first = True
        """Whether no round is over yet."""
        self._plain = 0

    def over(self, drafted: int) -> bool:
        """A round with so many drafted tokens is over: whether it is shown."""
        first, self.first = self.first, False
        self._plain = 0 if drafted else self._plain + 1
        return self._wanted and (first or self._plain % PLAIN_INTERVAL == 0)


class Shadows(NamedTuple):
    """What each exit would have drafted at each position of a round, held against the target's likeliest token.

    match: [exits, n] bool. confidence: [exits, n] the exit's probability of its likeliest token. before: how many of the
    positions lie in the prompt.
    """

    match: Tensor
    confidence: Tensor
    before: int


class ExitDrafter(Drafter):
    """Drafts with the first layers in the target's own cache; `score` takes the same rows through the others.

    The loop then keeps the accepted rows, whole in all layers. price: None where neither exit nor length is chosen.
    """

    def __init__(
        self, request: Request, options: Options, speech: Speech, statistics: ExitStatistics, price: ExitPrice | None
    ):
        self._request, self._options, self._speech, self._price = request, options, speech, price
        self.statistics = statistics
        self.chosen = statistics.exits[0], 1 if options.length is None else options.length
        """Exit and length of the next draft."""
        self._watch = Watch(price is not None)
        self._sequence: CachedSequence | None = None
        self._lower: LowerRows | None = None
        """Of the draft that is not verified yet."""
        self.shadows: Shadows | None = None
        """Of the last round, where it was shown to all exits."""

    def begin(self, sequence: CachedSequence) -> None:
        self._sequence = sequence

    def propose(self, tokens: Sequence[int], depth: int) -> Draft | Generator[Forward, Scores, Draft]:
        length = min(self._length(), depth)
        return self._grow(tokens, length) if length > 0 else EMPTY

    def _length(self) -> int:
        """How many tokens the next draft has at most."""
        options, (_, length) = self._options, self.chosen
        if options.length is not None:
            return options.length
        if options.bypass and length == 0:
            return 0
        if self._watch.first:
            return 1
        return options.most if options.by_threshold else length

    def _threshold(self, exit: int) -> float:
        """A token less likely than this ends the draft; NaN where none does."""
        unknown = self._watch.first or self._options.length is not None or not self._options.by_threshold
        return math.nan if unknown else self.statistics.threshold(exit)

    def _grow(self, tokens: Sequence[int], length: int) -> Generator[Forward, Scores, Draft]:
        sequence, request, (exit, _) = self._sequence, self._request, self.chosen
        assert sequence is not None
        threshold = self._threshold(exit)
        lower = LowerRows(sequence, exit, self.statistics.exits)
        drafted: list[int] = []
        q: dict[int, Tensor] = {}
        fed = list(tokens[sequence.length :])
        while len(drafted) < length:
            yield from lower.run(fed)
            request.statistics.count(f"{request.host.network.name} (exit head)", 1, 0)
            token, sure = self._choose(self._speech.logits({exit: lower.newest[-1:]})[0], drafted, q)
            if token is None:
                break
            drafted.append(token)
            if token in request.stop_ids or sure < threshold:
                break
            fed = [token]
        if not drafted:  # the law forbids all that an exit can say: the rows of the first layers are of no use
            sequence.truncate(sequence.length - len(fed))
            return EMPTY
        self._lower = lower
        made = chain(drafted, [("exit", exit)] * len(drafted))
        return (
            made if request.law.greedy else Draft(made.tokens, made.parents, q, Siblings.WITH_REPLACEMENT, made.kinds)
        )

    def _choose(self, row: Tensor, path: Sequence[int], q: dict[int, Tensor]) -> tuple[int | None, float]:
        """The token drafted after `path` and its probability in the exit's raw law; no token where all are forbidden."""
        whole = self._speech.whole(row)
        token = spoken(self._request, whole, path, q)
        return token, 0.0 if token is None else float((whole[token] - row.logsumexp(dim=-1)).exp())

    def score(
        self, sequence: CachedSequence, pending: Sequence[int], draft: Draft
    ) -> Generator[Forward, Scores, Scores]:
        first = self._watch.first
        shown = self._watch.over(len(draft))
        exits, layers = self.statistics.exits, sequence.owner.layers
        taps = tuple(exit - 1 for exit in exits if exit <= layers) if shown else ()
        count, last = len(pending) + len(draft), len(pending) - 1
        before = min(last, self._options.context) if first and shown else 0
        wanted = range(last - before, count)
        lower, self._lower = self._lower, None
        if lower is None:
            scores = yield Forward(sequence, pending, taps=taps, logits=wanted)
            hidden = dict(scores.hidden)
        else:
            # The last drafted token goes through the first layers, too: the target's law after it is needed.
            yield from lower.run([draft.tokens[-1]])
            scores, hidden = yield from lower.complete(count, taps, wanted)
        rows = {exit: hidden[exit - 1][wanted.start :] for exit in exits} if shown else {}
        self.shadows = self._look(rows, scores.logits, before) if shown else None
        return Scores(scores.logits[before:])

    def _look(self, rows: dict[int, Tensor], logits: Tensor, before: int) -> Shadows:
        """Show each exit its rows [n, hidden], of which the target has the scores `logits`."""
        said = self._speech.logits(rows)
        self._request.statistics.count(f"{self._request.host.network.name} (exit head)", said.shape[0], 0)
        best = said.max(dim=-1)
        confidence = (best.values - said.logsumexp(dim=-1)).exp().view(len(rows), -1)
        match = self._speech.ids(best.indices).view(len(rows), -1) == logits.argmax(dim=-1)[None]
        return Shadows(match.cpu(), confidence.cpu(), before)

    def observe(self, round: Round) -> None:
        shadows, options = self.shadows, self._options
        if shadows is None or self._price is None:
            return
        # What comes after a refused token was computed in a context that is not the text.
        kept = shadows.before + len(round.verdict.path) + 1 if options.clip else None
        self.statistics.update(shadows.match[:, :kept], shadows.confidence[:, :kept])
        lengths = range(options.most) if options.length is None else (options.length,)
        exit, length = self.statistics.select(self._price.at(len(self._request.tokens)), lengths)
        if options.length is not None:
            length = options.length
        elif not options.bypass:
            length = max(length, 1)
        self.chosen = exit if options.exit is None else options.exit, length
