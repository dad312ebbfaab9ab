"""SpecDec++: drafts end where a trained head expects a rejection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Exactness, parameter
from decodery.engine.needs import NEXT_TOKENS, Artifact, Companion, Requirement
from decodery.engine.parameters import not_one_of
from decodery.errors import BadParameter, MethodUnavailable
from decodery.speculative.draft_laws.laws import LAYERS, DraftLawMethod
from decodery.speculative.draft_laws.networks import NetworkLaws
from decodery.speculative.loop import Drafter

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.models.heads import HeadNetwork
    from decodery.models.scorer import Scorer
    from decodery.speculative.specdec_pp.acceptance import TrainedHead

HEAD, CONFIDENCE = "head", "confidence"


@dataclass(frozen=True)
class SpecDecPlusPlus(DraftLawMethod):
    """A draft model drafts until a head over its hidden rows holds it likely that a token of the draft is rejected; then the
    target verifies the draft with the rejection rule."""

    name: ClassVar[str] = "specdec-pp"
    title: ClassVar[str] = "SpecDec++: adaptive candidate lengths"
    paper: ClassVar[str] = "Huang et al., COLM 2025, arXiv 2405.19715"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
    family: ClassVar[str] = "speculative"
    needs: ClassVar[tuple[Requirement, ...]] = (
        NEXT_TOKENS,
        Companion("draft", "a smaller model, or the target's first layers"),
        Artifact("an acceptance head of both (shipped for smollm2-135m with draft=smollm2-sibling)"),
    )

    draft: str = parameter(
        LAYERS, "a model's name, layers (the target's first), ngram (counts and recycled scores), ngram-text (counts)"
    )
    rule: str = parameter(
        "auto",
        "what ends a draft: head, the chance of a rejection that the head tells; confidence, a token where the drafter is not "
        "sure; auto: head where there is one for target and drafter, else confidence",
        choices=("auto", HEAD, CONFIDENCE),
    )
    head: str = parameter(
        "auto",
        "folder of the acceptance head; auto: the one shipped for target and drafter",
        names="file",
        only={"rule": not_one_of(CONFIDENCE)},
    )
    threshold: float | None = parameter(
        None,
        "a draft ends once a rejection is likelier than this",
        low=0.0,
        high=1.0,
        auto="what was tuned for the head",
        only={"rule": not_one_of(CONFIDENCE)},
    )
    confidence: float = parameter(
        0.4,
        "a draft ends where the drafter's likeliest token is less likely than this",
        low=0.0,
        high=1.0,
        only={"rule": not_one_of(HEAD)},
    )
    shortest: int = parameter(2, "tokens drafted per round at least", low=1, high=64)
    longest: int = parameter(20, "tokens drafted per round at most", low=1, high=64)

    def check(self) -> None:
        if self.shortest > self.longest:
            raise BadParameter(f"{self.name}: shortest={self.shortest} must not exceed longest={self.longest}.")

    def most_nodes(self) -> int:
        return self.longest

    def admit(self, request: Request) -> None:
        super().admit(request)
        self._trained(request)

    def _drafting(self, request: Request) -> tuple[Scorer, int] | None:
        """The network whose rows the head reads, and how many first layers of it draft, 0 for all; None without a network."""
        if self._has_model:
            return self.pair(request).draft.network, 0
        if self.draft == LAYERS:
            network = request.host.network
            return network, len(self.first_layers(request).indices(network.layers))
        return None

    def _trained(self, request: Request) -> TrainedHead | None:
        """The head of the request's networks, read once; None where confidence decides. Raises MethodUnavailable where it is
        of other networks, or asked for and not there."""
        if self.rule == CONFIDENCE:
            return None
        asked = self.rule == HEAD or self.head != "auto" or self.threshold is not None
        drafting = self._drafting(request)
        if drafting is None or drafting[0].hidden is None:
            if asked:
                raise MethodUnavailable(
                    f"{self.name}: draft={self.draft} has no hidden rows that a head could read; set rule=confidence."
                )
            return None
        network, layers = drafting
        target = request.host.network.fingerprint()
        draft = network.fingerprint()

        def read() -> TrainedHead | None:
            from decodery.speculative.specdec_pp.acceptance import TrainedHead, shipped

            folder = shipped(target, draft, layers) if self.head == "auto" else Path(self.head).expanduser()
            return None if folder is None else TrainedHead.read(folder)

        key = ("acceptance head", self.head, target, draft, layers)
        found = request.remember(key, read, everywhere=True)
        if found is None:
            if asked:
                raise MethodUnavailable(
                    f"{self.name}: no acceptance head is shipped for {request.host.network.name} with draft={self.draft}; "
                    "train one (decodery train acceptance-head), or set rule=confidence."
                )
            return None
        self._check_made_for(found, request, network, layers)
        return found

    def _check_made_for(self, found: TrainedHead, request: Request, network: Scorer, layers: int) -> None:
        """Raise MethodUnavailable where a head is of other networks."""
        for role, has, scorer in (("target", found.target, request.host.network), ("drafter", found.draft, network)):
            if has != scorer.fingerprint():
                raise MethodUnavailable(
                    f"{self.name}: the head in {self.head} was trained for the {role} {has}, and {scorer.name} is "
                    f"{scorer.fingerprint()}."
                )
        if found.layers != layers:
            raise MethodUnavailable(
                f"{self.name}: the head in {self.head} was trained for a draft of {found.layers or 'all'} layers, "
                f"not of {layers or 'all'}."
            )
        if found.hidden != network.hidden:
            raise MethodUnavailable(
                f"{self.name}: the head in {self.head} reads rows of {found.hidden} numbers, and those of {network.name} have "
                f"{network.hidden}."
            )

    def drafter(self, request: Request) -> Drafter:
        from decodery.speculative.specdec_pp.drafter import Bounds, ConfidenceStop, HeadStop, StoppingDrafter

        trained = self._trained(request)
        laws = self.laws(request)
        bounds = Bounds(self.shortest, self.longest)
        if trained is None:
            return StoppingDrafter(request, laws, ConfidenceStop(self.confidence, request.law.greedy), bounds)
        assert isinstance(laws, NetworkLaws)
        laws.keep_row()
        threshold = trained.threshold if self.threshold is None else self.threshold
        return StoppingDrafter(request, laws, HeadStop(laws, self._network(request, trained), threshold), bounds)

    def _network(self, request: Request, trained: TrainedHead) -> HeadNetwork:
        """The head as a scorer that all requests share, so that their rows are packed."""
        from decodery.models.heads import HeadNetwork

        key = ("acceptance head network", self.head, trained.target, trained.draft, trained.layers)
        return request.remember(
            key, lambda: HeadNetwork(trained.head, trained.hidden, 2, "acceptance head"), everywhere=True
        )
