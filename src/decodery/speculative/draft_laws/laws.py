"""Draft laws: what any drafter that gives probabilities holds likely next, whether a network is behind it or not.

Methods that draw their drafts at random need three things of a drafter: the law it draws from (processed as the target's
is), level by level as the tree grows, and that it keeps up with the committed text. That is all a `DraftLaws` is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from decodery._lazy import torch
from decodery.engine.method import parameter
from decodery.engine.needs import MoreThanChains, Requirement
from decodery.engine.parameters import not_one_of
from decodery.errors import MethodUnavailable, Refused
from decodery.models.forward import ALL_LAYERS, Forward, Layers
from decodery.speculative.draft_laws.pairing import AUTO, SAME, SHARED, Pair, pair
from decodery.speculative.draft_laws.transcript import SameTokens, Transcript
from decodery.speculative.loop import Round, SpeculativeMethod

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Host, Request
    from decodery.models.forward import Scores
    from decodery.models.scorer import Scorer

NGRAM = "ngram"
"""The word for a drafter that counts the running text and learns from the target's scores."""
NGRAM_TEXT = "ngram-text"
"""The word for a drafter that only counts the running text."""
LAYERS = "layers"
"""The word for a drafter made of the target's first layers."""
A_MODEL = not_one_of(NGRAM, NGRAM_TEXT, LAYERS)
"""The drafter is a model, by its name."""

Path: TypeAlias = tuple[int, ...]
"""The drafted tokens from the first after the committed text down to a node; empty for the root."""


class DraftLaws(ABC):
    """The draft laws of one request.

    A law is a tensor [vocabulary] float32: the probabilities of the processed draft law, or in greedy decoding the
    processed scores, of which only the order matters. None in place of a law: nothing can be drafted there, for the drafter
    cannot read the text or every token that it knows is forbidden.
    """

    def __init__(self, request: Request):
        self.request = request

    @abstractmethod
    def root(self, tokens: Sequence[int]) -> Generator[Forward, Scores, Tensor | None]:
        """The law after the committed `tokens`. Begins a new draft."""

    @abstractmethod
    def after(self, paths: Sequence[Path]) -> Generator[Forward, Scores, list[Tensor | None]]:
        """The law after each of `paths`, all of one level of the tree. The level above has been asked for before; equal
        paths are allowed, and cost nothing."""

    def observe(self, round: Round) -> None:  # noqa: B027
        """See what became of the draft. Called after every round."""

    def processed(self, row: Tensor, path: Path) -> Tensor | None:
        """The law of a raw row of scores [vocabulary] after the committed text and `path`: the target's own processing."""
        law = self.request.law.drafting
        scores = law.scores(row, path)
        if not math.isfinite(float(scores.max())):
            return None
        return scores if law.greedy else torch.log_softmax(scores.float(), dim=-1).exp()


class NetworkLaws(DraftLaws):
    """The laws of a network: a smaller model, or some layers of the target.

    Its cache follows the committed text: accepted nodes stay, the rest is dropped. Beyond its context there are no laws.
    pair: how its tokens stand for the target's; None where they are the target's.
    """

    def __init__(self, request: Request, network: Scorer, layers: Layers = ALL_LAYERS, pair: Pair | None = None):
        super().__init__(request)
        self.network, self.layers = network, layers
        self._shared = None if pair is None else pair.shared
        self._sequence = request.new_sequence(network)
        self._transcript = Transcript(
            SameTokens(network.vocabulary) if pair is None else pair.reading(), self._sequence
        )
        self._start = 0
        self._rows: dict[Path, int] = {}
        """Path of a node of the current draft -> its row in the cache."""

    def root(self, tokens: Sequence[int]) -> Generator[Forward, Scores, Tensor | None]:
        pending = self._transcript.pending(tokens)
        self._start, self._rows = self._sequence.length, {}
        if pending is None:
            return None
        self._start += len(pending)
        scores = yield Forward(self._sequence, pending, layers=self.layers, logits=(len(pending) - 1,))
        return self._law(scores.logits[0], ())

    def after(self, paths: Sequence[Path]) -> Generator[Forward, Scores, list[Tensor | None]]:
        fresh = list(dict.fromkeys(paths))
        if self._start + len(fresh[0]) > self.network.context:
            return [None] * len(paths)
        scores = yield self._ask(fresh)
        laws = {path: self._law(row, path) for path, row in zip(fresh, scores.logits, strict=True)}
        return [laws[path] for path in paths]

    def _law(self, row: Tensor, path: Path) -> Tensor | None:
        return self.processed(row if self._shared is None else self._shared.scores(row), path)

    def _ask(self, paths: list[Path]) -> Forward:
        """Score the last token of each path: it sees the committed text, its ancestors and itself."""
        sequence = self._sequence
        tokens = [path[-1] if self._shared is None else self._shared.to_draft[path[-1]] for path in paths]
        for place, path in enumerate(paths):
            self._rows[path] = sequence.length + place
        if len(paths) == 1 and sequence.length == self._start + len(paths[0]) - 1:  # a chain so far
            return Forward(sequence, tokens, layers=self.layers)
        mask = torch.zeros(len(paths), sequence.length + len(paths), dtype=torch.bool)
        mask[:, : self._start] = True
        for place, path in enumerate(paths):
            for depth in range(1, len(path) + 1):
                mask[place, self._rows[path[:depth]]] = True
        last = sequence.positions[self._start - 1]
        positions = [last + len(path) for path in paths]
        return Forward(sequence, tokens, positions, mask, layers=self.layers)

    def observe(self, round: Round) -> None:
        accepted = tuple(round.draft.tokens[node] for node in round.verdict.path)
        rows: list[int] = []
        for depth in range(1, len(accepted) + 1):
            row = self._rows.get(accepted[:depth])
            if row is None:  # the last level was never fed
                break
            rows.append(row)
        if self._sequence.length > self._start:
            self._sequence.keep(rows, self._start)
        self._start, self._rows = self._sequence.length, {}


@dataclass(frozen=True)
class DraftLawMethod(SpeculativeMethod):
    """Base of the methods that draw their drafts from a draft law, and of their common parameters."""


    draft: str = parameter(
        NGRAM, "ngram (counts and recycled scores), ngram-text (counts), layers (the target's first), or a model's name"
    )
    layers: int | None = parameter(
        None, "how many first layers draft", low=1, high=1024, auto="a third of them", only={"draft": LAYERS}
    )
    vocabulary: str = parameter(
        AUTO,
        "how a draft model's tokens stand for the target's; same: they are the same; shared: it drafts the tokens that both "
        "have; auto: same where they are, else shared",
        choices=(AUTO, SAME, SHARED),
        only={"draft": A_MODEL},
    )

    @property
    def adaptive(self) -> bool:
        return False  # a draft drawn at random must not depend on other requests

    @property
    def chain_setting(self) -> str:
        """What to set so that its drafts are chains; empty where they are."""
        return ""

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        if self.draft == LAYERS:
            return (*self.needs, MoreThanChains("with draft=layers drafts with the target's first layers"))
        return (*self.needs, self._trees) if self.chain_setting else self.needs

    @property
    def _trees(self) -> MoreThanChains:
        return MoreThanChains(f"draws draft trees, unless {self.chain_setting}")

    @property
    def _has_model(self) -> bool:
        """Whether `draft` names a model."""
        return A_MODEL.holds(self.draft)

    def admit(self, request: Request) -> None:
        if self._has_model:
            missing = self._trees.missing(self, self.pair(request).draft)
            if missing is not None and self.chain_setting:
                raise Refused(missing)
        elif self.draft == LAYERS:
            self.first_layers(request)

    def first_layers(self, request: Request) -> Layers:
        """The target's layers that draft. Raises MethodUnavailable where these are all."""
        target = request.host.network
        count = max(1, target.layers // 3) if self.layers is None else self.layers
        if count >= target.layers:
            raise MethodUnavailable(
                f"{self.name}: layers={count} leaves nothing to gain, since {target.name} has {target.layers}."
            )
        return Layers(0, count)

    def pair(self, request: Request) -> Pair:
        """The draft model and how its tokens stand for the target's. Raises MethodUnavailable where they cannot."""
        key = ("draft model", self.draft, self.vocabulary)

        def make() -> Pair:
            draft: Host = request.host.companion(self.draft)
            return pair(request.host, draft, self.vocabulary, self.name)

        return request.remember(key, make, everywhere=True)

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        caches = super().caches(request)
        if self._has_model:
            pair = self.pair(request)
            return [*caches, (pair.draft.network, pair.rows(caches[0][1]))]
        return [*caches, (request.host.network, caches[0][1])] if self.draft == LAYERS else caches

    def laws(self, request: Request) -> DraftLaws:
        """The draft laws of a request."""
        if self._has_model:
            pair = self.pair(request)
            return NetworkLaws(request, pair.draft.network, pair=pair)
        if self.draft == LAYERS:
            return NetworkLaws(request, request.host.network, self.first_layers(request))
        from decodery.speculative.draft_laws.ngrams import NgramLaws

        return NgramLaws(request, recycle=self.draft == NGRAM)
