"""Whose law drafts: what the methods that draw their drafts from a draft law have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from decodery.engine.method import parameter
from decodery.engine.needs import MoreThanChains, Requirement
from decodery.engine.parameters import not_one_of
from decodery.errors import MethodUnavailable, Refused
from decodery.models.forward import Layers
from decodery.speculative.draft_laws.base import DraftLaws
from decodery.speculative.draft_laws.networks import NetworkLaws
from decodery.speculative.draft_laws.ngrams import NgramLaws
from decodery.speculative.draft_laws.pairing import AUTO, SAME, SHARED, Pair, pair
from decodery.speculative.loop import SpeculativeMethod

if TYPE_CHECKING:
    from decodery.engine.host import Host
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer

NGRAM = "ngram"
"""The word for a drafter that counts the running text and learns from the target's scores."""
NGRAM_TEXT = "ngram-text"
"""The word for a drafter that only counts the running text."""
LAYERS = "layers"
"""The word for a drafter made of the target's first layers."""
A_MODEL = not_one_of(NGRAM, NGRAM_TEXT, LAYERS)
"""The drafter is a model, by its name."""


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
        return NgramLaws(request, recycle=self.draft == NGRAM)
