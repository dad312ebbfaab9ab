"""Draft, verify, commit: the loop that all drafters and verifiers share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

from decodery.engine.method import Decoding, Method
from decodery.errors import ScoresNotNumbers
from decodery.models.forward import Attend, Forward, Tree
from decodery.speculative.budget import Acceptance, best_path, lawful, within, worthwhile
from decodery.speculative.draft import EMPTY, Draft, Siblings, chain
from decodery.speculative.pace import Laps, Pace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.forward import Ranking, Scores
    from decodery.models.scorer import Scorer
    from decodery.models.sequence import Sequence as CachedSequence
    from decodery.speculative.verifiers import Verdict, Verifier


USUAL_NODES = 64
"""No draft is larger, unless a method says so."""
LONG_PROMPT = 32
"""From so many rows on, a prompt is scored without a tree."""


class Beginning(Sequence[int]):
    """The first `length` tokens of a text that only grows. It stays what it is, as a copy would; but copying touches every
    token, which takes longer than most of what happens between two passes."""

    __slots__ = ("_length", "_text")

    def __init__(self, text: list[int], length: int):
        self._text, self._length = text, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return islice(self._text, self._length)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        if isinstance(place, slice):
            return [self._text[index] for index in range(self._length)[place]]
        return self._text[range(self._length)[place]]


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """What a verification brought to light, for drafters that learn.

    tokens: the committed tokens before the round (the draft hung on the last). draft: as verified. verdict: the
    verifier's. emitted: accepted tokens and the target's own. logits: [n + 1, vocabulary] the target's raw
    scores, row 0 after the last committed token and row i + 1 after node i. hidden: taps -> [n + 1, hidden], where asked for.
    ranking: the likeliest tokens of these rows instead of logits, where that is enough for the drafter and for the request.
    """

    tokens: Sequence[int]
    draft: Draft
    verdict: Verdict
    emitted: Sequence[int]
    logits: Tensor
    hidden: Mapping[int, Tensor]
    ranking: Ranking | None = None


class Drafter(ABC):
    """Proposes continuations of one request. Everything it knows of the text is in what it is told."""

    taps: tuple[int, ...] = ()
    """Layers whose hidden rows it wants to see of each verified node."""
    guided: bool = False
    """Whether its drafts heed what the law forces and forbids; those of others are put right."""
    rank: int = 0
    """So many likeliest tokens of each verified node are all it wants to know of the scores; 0: it wants the scores."""
    watch_prompt: Callable[[Sequence[int], Scores], None] | None = None
    """Called with the prompt's tokens, their raw scores and the rows of `taps`, chunk by chunk, where not None."""

    def begin(self, sequence: CachedSequence) -> None:  # noqa: B027
        """Called once, before the first proposal, with the target's own sequence: for drafters that draft in its cache.

        When a proposal is over, the rows that it added are gone, or are those that `score` goes on from.
        """

    @abstractmethod
    def propose(self, tokens: Sequence[int], depth: int) -> Draft | Generator[Forward, Scores, Draft]:
        """A draft after `tokens`, at most `depth` deep. A drafter that runs a network is a generator of forwards."""

    def score(
        self, sequence: CachedSequence, pending: Sequence[int], draft: Draft
    ) -> Generator[Forward, Scores, Scores]:
        """Have the target score the tokens that are not cached yet and the draft: logits of the last pending token and of
        every node, hidden rows of all. Drafters that ran some of the target's layers already go on from there."""
        return (yield whole_pass(sequence, pending, draft, self.taps, self.rank))

    def observe(self, round: Round) -> None:  # noqa: B027
        """See what became of the draft. Called after every round, also the last."""


@dataclass(frozen=True)
class SpeculativeMethod(Method):
    """Base of the methods that draft and verify. A subclass says how it drafts; exactness comes from the verifier."""

    @abstractmethod
    def drafter(self, request: Request) -> Drafter:
        """The drafter of one request."""

    @property
    def adaptive(self) -> bool:
        """Whether the engine picks the draft's size on the cost curve; otherwise whole drafts are verified."""
        return True

    @property
    def paced(self) -> bool:
        """Whether rounds go without a draft where rounds without were measured to be faster. Not for drafts that are drawn at
        random: what is drawn, and so the output for a seed, must not depend on time."""
        return False

    def most_nodes(self) -> int:
        """The most rows that a draft, or the drafter in the target's own cache, has beyond the committed text."""
        return USUAL_NODES

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        return [(network, rows + self.most_nodes()) for network, rows in super().caches(request)]

    def judge(self, draft: Draft, greedy: bool) -> Verifier:
        """Who judges a draft: by default the verifier that is exact for it and accepts the most."""
        from decodery.speculative.verifiers import verifier_for

        return verifier_for(draft, greedy)

    def decode(self, request: Request) -> Decoding:
        yield from speculate(request, self.drafter(request), self.spec(), self.adaptive, self.judge, self.paced)


def speculate(
    request: Request,
    drafter: Drafter,
    name: str,
    adaptive: bool,
    verifier_of: Callable[[Draft, bool], Verifier],
    paced: bool = False,
) -> Decoding:
    """Decode a request with a drafter.

    name: under which the acceptance statistics of this way of drafting are remembered. adaptive: pick the draft's size
    on the cost curve. verifier_of: (draft, greedy) -> the verifier that judges it. paced: leave drafts out where measured
    rounds were faster without. A request whose drafts are drawn at random counts its acceptance alone: what it draws, and so
    its output for a seed, must not depend on earlier requests or on its neighbours.
    """
    from decodery.speculative.verifiers import verifier_for

    sequence = request.new_sequence()
    if not request.law.greedy or request.law.order or request.reads_rows:
        drafter.rank = 0  # the likeliest token alone does not tell what is emitted
    drafter.begin(sequence)
    yield from request.score_prompt(sequence, drafter.watch_prompt, drafter.taps)
    shared = request.remember((name, "acceptance"), Acceptance)
    alone = Acceptance()
    cost = request.host.cost(request.host.network) if adaptive else None
    laps = _laps(request, name) if paced else None
    stability = sequence.owner.stability
    # A drafter that goes on from rows of its own verifies its own drafts alone.
    takes_any = type(drafter).score is Drafter.score
    while True:
        # 1. Draft. The target's own token fills the last place, so a draft is one shorter than what may come. Where
        #    rounding depends on how many rows share a pass, a long prompt is scored alone, as plain decoding does it.
        cached = sequence.length
        pending = request.tokens[cached:]
        depth = min(request.remaining - 1, sequence.owner.room(cached, len(request.tokens)))
        if stability is not None and len(pending) >= stability.rows:
            depth = 0
        guides = bool(request.law.guides) and not drafter.guided
        forced = request.law.forced()[:depth] if guides and takes_any and depth > 0 else ()
        if laps is not None and not laps.begin(request.company):
            depth = 0
        proposal: Any = drafter.propose(request.tokens, depth) if depth > 0 and not forced else EMPTY
        proposed: Draft = (yield from proposal) if isinstance(proposal, Generator) else proposal
        proposed = within(proposed, depth, request.stop_ids)
        random = proposed.siblings is not Siblings.DETERMINISTIC
        if guides and not random:
            proposed = lawful(proposed, request.law.may_follow)
        acceptance = alone if random else shared
        # 2. Keep what is worth its rows. A tree below a long prompt never is: all the prompt's rows would need a mask.
        if sequence.owner.chains_only and not random and not proposed.is_chain:
            proposed = best_path(proposed, acceptance)
        if len(pending) >= LONG_PROMPT and not proposed.is_chain:
            proposed = EMPTY
        draft = proposed
        if cost is not None and not random:
            most = len(proposed) if stability is None else stability.rows - len(pending)
            draft = worthwhile(proposed, acceptance, cost.at(cached), len(pending), most, request.company)
        if forced:  # what comes for certain is worth its rows, and no drafter's merit
            draft = chain(forced if stability is None else forced[: max(0, stability.rows - len(pending))])
        # 3. Score the tokens that are committed but not cached, and the draft, in one forward.
        start = cached + len(pending)
        request.drafted(draft.tokens, draft.parents)
        scores = yield from drafter.score(sequence, pending, draft)
        # 4. Verify on the processed law of each node's own prefix.
        verifier = verifier_for(draft, request.law.greedy) if forced else verifier_of(draft, request.law.greedy)
        verdict = verifier.verify(
            draft, ProcessedLaws(request, draft, scores.logits, scores.ranking), request.noise, request.position
        )
        # 5. Keep the accepted path in the cache; the target's own token is scored in the next round.
        sequence.keep([start + node for node in verdict.path], start)
        emitted = [*(draft.tokens[node] for node in verdict.path), verdict.next_token]
        rows = [scores.logits[row] for row in (0, *(node + 1 for node in verdict.path))] if request.reads_rows else ()
        # 6. Learn, then commit.
        if adaptive and not forced:
            acceptance.observe(proposed, emitted)
        hidden = {tap: tensor[len(pending) - 1 :] for tap, tensor in scores.hidden.items()}
        before = Beginning(request.tokens, len(request.tokens))
        over = request.commit(emitted, rows, accepted=len(verdict.path))
        drafter.observe(Round(before, draft, verdict, emitted, scores.logits, hidden, scores.ranking))
        if over:
            return
        if laps is not None:
            laps.end(len(emitted), request.away)


def _laps(request: Request, name: str) -> Laps | None:
    """The rounds of a request, to be measured; None where its network's cost is not that of a machine.

    All sessions share what is measured: their requests share the rounds, and it tells nothing of a text.
    """
    network = request.host.network
    clock = request.host.cost(network).clock
    if clock is None:
        return None
    return Laps(request.remember((name, "pace", network.name), lambda: Pace(clock), everywhere=True))


def whole_pass(
    sequence: CachedSequence, pending: Sequence[int], draft: Draft, taps: tuple[int, ...], rank: int = 0
) -> Forward:
    """Score the pending tokens and the draft; logits of the last pending token and of every node."""
    tokens = [*pending, *draft.tokens]
    last = len(pending) - 1
    logits = range(last, len(tokens))
    if draft.is_chain:
        return Forward(sequence, tokens, attend=Attend.CAUSAL, taps=taps, logits=logits, rank=rank)
    position = sequence.next_position
    positions = [*range(position, position + len(pending)), *(position + last + depth for depth in draft.depths())]
    return Forward(sequence, tokens, positions, Tree(draft.parents), taps=taps, logits=logits, rank=rank)


class ProcessedLaws:
    """The target's processed laws of a draft's nodes, computed when a verifier looks at them.

    logits: [n + 1, vocabulary] the raw scores, row 0 after the last committed token and row i + 1 after node i. ranking: of
    these rows instead, where no law but the greedy one is looked at.
    """

    def __init__(self, request: Request, draft: Draft, logits: Tensor, ranking: Ranking | None = None):
        self.request, self.draft, self.logits = request, draft, logits
        self._ranking = ranking
        self._raw: NDArray[np.float32] | None = None
        if ranking is None and request.law.greedy and not request.law.order and logits.is_cpu:
            self._raw = logits.numpy(force=True)  # which comes to a row much sooner than torch does

    def likeliest(self, row: int) -> int:
        """The token of the highest score in a row, the lowest id among equals."""
        if self._ranking is not None:
            if math.isnan(self._ranking.shares[row][0]):
                raise ScoresNotNumbers(
                    f"the network's scores of token {len(self.request.new_tokens) + 1} are not numbers", raw=True
                )
            return self._ranking.ids[row][0]
        if self._raw is not None:
            token = int(self._raw[row].argmax())
            self.request.law.check(float(self._raw[row][token]), self.logits[row])
            return token
        return self.request.law.likeliest(self.logits[row], self._path(row))

    def probabilities(self, row: int) -> Tensor:
        """The law [vocabulary] float32 of a row that is drawn from, to the last bit that of plain decoding."""
        return self.request.law.probabilities(self.logits[row], self._path(row))

    def _path(self, row: int) -> list[int]:
        """The draft's tokens before a row, where the law looks at them."""
        if not self.request.law.uses_prefix or row == 0:
            return []
        return [self.draft.tokens[node] for node in self.draft.path(row - 1)]

    def __getitem__(self, row: int) -> Tensor:
        law, path = self.request.law, self._path(row)
        if law.greedy:
            return law.scores(self.logits[row], path)
        return law.log_probabilities(self.logits[row], path)
