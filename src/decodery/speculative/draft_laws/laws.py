"""Whose law drafts: what the methods that draw their drafts from a draft law have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.engine.method import APPENDED_ONLY, parameter
from decodery.errors import MethodUnavailable, Refused
from decodery.models.forward import Layers
from decodery.speculative.draft_laws.base import DraftLaws
from decodery.speculative.draft_laws.networks import NetworkLaws
from decodery.speculative.draft_laws.ngrams import NgramLaws
from decodery.speculative.draft_laws.pairing import AUTO, SAME, SHARED, Pair, pair
from decodery.speculative.loop import SpeculativeMethod

if TYPE_CHECKING:
    from decodery.engine.request import Host, Request
    from decodery.models.scorer import Scorer

NGRAM = "ngram"
"""The word for a drafter that counts the running text and learns from the target's scores."""
NGRAM_TEXT = "ngram-text"
"""The word for a drafter that only counts the running text."""
LAYERS = "layers"
"""The word for a drafter made of the target's first layers."""


@dataclass(frozen=True)
class DraftLawMethod(SpeculativeMethod):
    """Base of the methods that draw their drafts from a draft law, and of their common parameters."""

    draft: str = parameter(
        NGRAM, "ngram (counts and recycled scores), ngram-text (counts), layers (the target's first), or a model's name"
    )
    layers: int | None = parameter(
        None, "how many first layers draft, with draft=layers", low=1, high=1024, auto="a third of them"
    )
    vocabulary: str = parameter(
        AUTO,
        "how a draft model's tokens stand for the target's; same: they are the same; shared: it drafts the tokens that both "
        "have; auto: same where they are, else shared",
        choices=(AUTO, SAME, SHARED),
    )

    @property
    def adaptive(self) -> bool:
        return False  # a draft drawn at random must not depend on other requests

    @property
    def chain_setting(self) -> str:
        """What to set so that its drafts are chains; empty where they are."""
        return ""

    @property
    def beyond_chains(self) -> str:
        if self.draft == LAYERS:
            return "with draft=layers drafts with the target's first layers"
        return f"draws draft trees, unless {self.chain_setting}" if self.chain_setting else ""

    @property
    def _has_model(self) -> bool:
        """Whether `draft` names a model."""
        return self.draft not in (NGRAM, NGRAM_TEXT, LAYERS)

    def admit(self, request: Request) -> None:
        if self.layers is not None and self.draft != LAYERS:
            raise MethodUnavailable(
                f"{self.name}: layers={self.layers} goes with draft=layers, the target's own; draft={self.draft} has "
                "no use for it."
            )
        if self.vocabulary != AUTO and not self._has_model:
            raise MethodUnavailable(
                f"{self.name}: vocabulary={self.vocabulary} goes with a draft model; draft={self.draft} drafts in the target's "
                "own tokens."
            )
        if self._has_model:
            network = self.pair(request).draft.network
            if network.chains_only and self.chain_setting:
                raise Refused(f"{self.name} {self.beyond_chains}, and {network.name} {APPENDED_ONLY}.")
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
        return NgramLaws(request, recycle=self.draft == NGRAM)
