"""A smaller model drafts: speculative sampling as first published."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Exactness, parameter
from decodery.engine.needs import NEXT_TOKENS, Companion, Requirement
from decodery.engine.parameters import not_one_of
from decodery.engine.text import REPLACEMENT
from decodery.errors import MethodUnavailable
from decodery.models.forward import Forward, Rows
from decodery.speculative.draft import EMPTY, Draft, Siblings, chain
from decodery.speculative.draft_laws.base import DraftLaws
from decodery.speculative.draft_laws.growth import grow_branching
from decodery.speculative.draft_laws.laws import A_MODEL, LAYERS, DraftLawMethod
from decodery.speculative.draft_laws.networks import NetworkLaws
from decodery.speculative.draft_laws.pairing import AUTO, SAME, SHARED, TEXT, Pair
from decodery.speculative.draft_laws.transcript import Transcript
from decodery.speculative.loop import Drafter, Round

if TYPE_CHECKING:
    from decodery.engine.cost import CostCurve
    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.models.scorer import Scorer


LONGEST = 16
"""Longest chain where the cost curve chooses."""


@dataclass(frozen=True)
class DraftModel(DraftLawMethod):
    """A smaller model proposes tokens, the target verifies them with the rejection rule. Without one, the target's own first
    layers stand in, which costs no memory but agrees with it less."""

    name: ClassVar[str] = "draft-model"
    title: ClassVar[str] = "Speculative sampling with a draft model"
    paper: ClassVar[str] = "Leviathan et al., ICML 2023, arXiv 2211.17192; Chen et al., 2023, arXiv 2302.01318"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
    family: ClassVar[str] = "speculative"
    needs: ClassVar[tuple[Requirement, ...]] = (
        NEXT_TOKENS,
        Companion("draft", "a smaller model, or the target's first layers"),
    )

    draft: str = parameter(
        LAYERS, "a model's name, layers (the target's first), ngram (counts and recycled scores), ngram-text (counts)"
    )
    length: int | None = parameter(4, "tokens drafted per round", low=1, high=32, auto="what pays, from its acceptance")
    width: int = parameter(
        1,
        "draws after the last committed token; more than one makes a tree",
        low=1,
        high=16,
        only={"vocabulary": not_one_of(TEXT)},
    )
    vocabulary: str = parameter(
        AUTO,
        "how a draft model's tokens stand for the target's; same: they are the same; shared: it drafts the tokens that both "
        "have; text: it writes text; auto: same where they are, else shared",
        choices=(AUTO, SAME, SHARED, TEXT),
        only={"draft": A_MODEL},
    )

    @property
    def chain_setting(self) -> str:
        return "" if self.width == 1 else "width=1"

    def most_nodes(self) -> int:
        return self.width * (self.length or LONGEST)

    def laws(self, request: Request) -> DraftLaws:
        if self.vocabulary == TEXT:
            raise MethodUnavailable(f"{self.name}: a draft that is text has no draft law; vocabulary=shared gives one.")
        return super().laws(request)

    def drafter(self, request: Request) -> Drafter:
        if self.vocabulary == TEXT:
            pair = self.pair(request)
            return TextDrafter(request, pair, self._length(request, pair.draft.network, 1.0))
        laws = self.laws(request)
        if not isinstance(laws, NetworkLaws):
            return ChainDrafter(request, laws, self._length(request, None, 0.0), self.width)
        network = laws.network
        share = len(laws.layers.indices(network.layers)) / network.layers
        return ChainDrafter(request, laws, self._length(request, network, share), self.width)

    def _length(self, request: Request, network: Scorer | None, share: float) -> Length:
        """network: of whose rows a drafted token costs `share`; None where it costs nothing worth counting."""
        if self.length is not None:
            return Length(request, self.length)
        return Length(
            request,
            None,
            request.host.cost(request.host.network),
            None if network is None else request.host.cost(network),
            share,
        )


class Length:
    """How far a request is drafted for.

    tokens: so far; None: as far as pays. target, drafting: the cost curves of the target and of the network that drafts, and
    share: of its layers that run; only for what pays.
    """

    def __init__(
        self,
        request: Request,
        tokens: int | None,
        target: CostCurve | None = None,
        drafting: CostCurve | None = None,
        share: float = 1.0,
    ):
        self._request, self._tokens, self._target, self._drafting, self._share = (
            request,
            tokens,
            target,
            drafting,
            share,
        )
        self._accepted, self._tried = 2.0, 4.0

    def choose(self) -> int:
        """The chain length with the most expected tokens per second, (1 - a^(g+1)) / (1 - a) over the round's cost."""
        if self._target is None:
            assert self._tokens is not None
            return self._tokens
        context = len(self._request.tokens)
        target = self._target.at(context)
        step = 0.0 if self._drafting is None else self._drafting.at(context)(1) * self._share
        rate = self._accepted / self._tried
        best, best_rate, expected, gain = 0, 1.0 / target(1), 1.0, 1.0
        for length in range(1, LONGEST + 1):
            gain *= rate
            expected += gain
            per_second = expected / (target(1 + length) + length * step)
            if per_second > best_rate:
                best, best_rate = length, per_second
        # A draft of one now and then keeps the estimate alive.
        return best if best or self._request.position % 16 else 1

    def observe(self, round: Round) -> None:
        """See what became of a draft."""
        accepted = len(round.verdict.path)
        if len(round.draft):
            self._accepted += accepted
            self._tried += accepted + (1 if accepted < max(round.draft.depths()) else 0)


class ChainDrafter(Drafter):
    """Draws chains from draft laws; in greedy decoding takes the likeliest tokens."""

    def __init__(self, request: Request, laws: DraftLaws, length: Length, width: int):
        self._request, self._laws, self._length, self._width = request, laws, length, width

    def propose(self, tokens: Sequence[int], depth: int) -> Generator[Forward, Scores, Draft]:
        depth = min(depth, self._length.choose())
        branching = [self._width, *[1] * (depth - 1)] if depth > 0 else []
        return grow_branching(self._request, self._laws, tokens, branching, Siblings.WITH_REPLACEMENT)

    def observe(self, round: Round) -> None:
        self._length.observe(round)
        self._laws.observe(round)


class TextDrafter(Drafter):
    """Has a model with another tokenizer write text, and reads that with the target's tokenizer.

    The draft is deterministic: the model's likeliest tokens. So the target's own token is drawn as plain decoding draws it,
    and a drafted token is accepted with the target's probability of it, which is the most that any draft of one token can have.
    Source: Timor et al., arXiv 2502.05202, string-level exact match.
    """

    def __init__(self, request: Request, pair: Pair, length: Length):
        assert pair.tokens is not None
        self._target, self._draft = pair.tokens
        self._length = length
        self._sequence = request.new_sequence(pair.draft.network)
        self._transcript = Transcript(pair.rendering(), self._sequence)

    def propose(self, tokens: Sequence[int], depth: int) -> Generator[Forward, Scores, Draft]:
        from decodery.sampling.top import likeliest

        length = min(depth, self._length.choose())
        pending = self._transcript.pending(tokens) if length > 0 else None
        if pending is None:
            return EMPTY
        context = self._sequence.owner.context
        written: list[int] = []
        drafted: list[int] = []
        while True:
            scores = yield Forward(self._sequence, pending, logits=Rows.LAST)
            token = likeliest(scores.logits[0])
            if not self._draft.decode_within([token]):  # the end of a text, or of a turn
                break
            written.append(token)
            text = self._draft.decode_within(written)
            if REPLACEMENT not in text:  # whole characters
                drafted = self._target.encode_within(text)
            if len(written) == length or len(drafted) >= length or self._sequence.length == context:
                break
            pending = [token]
        return chain(drafted[:length])

    def observe(self, round: Round) -> None:
        self._length.observe(round)
