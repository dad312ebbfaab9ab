"""Kangaroo: the target's first layers and a small trained adapter draft, until they are not sure any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Decoding, Exactness, parameter
from decodery.engine.needs import NEXT_TOKENS, Artifact, MoreThanChains, Requirement, Taps
from decodery.errors import MethodUnavailable
from decodery.speculative.loop import SpeculativeMethod, speculate

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer
    from decodery.speculative.kangaroo.adapter import Adapter
    from decodery.speculative.kangaroo.drafter import KangarooDrafter, Voice

FREQUENT, ALL = "frequent", "all"


@dataclass(frozen=True)
class Kangaroo(SpeculativeMethod):
    """The target's first layers, an adapter of one attention and the target's head draft; drafting stops behind a token that
    they are not sure of, and the other layers verify. No row passes a layer twice."""

    name: ClassVar[str] = "kangaroo"
    title: ClassVar[str] = "Kangaroo: double early exiting"
    paper: ClassVar[str] = "Liu et al., NeurIPS 2024, arXiv 2404.18911"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
    family: ClassVar[str] = "speculative"
    refuses: ClassVar[Mapping[str, str]] = {
        "target": "its later layers go on from the hidden rows of earlier ones, which several members together do not have"
    }
    needs: ClassVar[tuple[Requirement, ...]] = (
        NEXT_TOKENS,
        MoreThanChains("drafts with the target's first layers"),
        Taps(),
        Artifact("an adapter (shipped for smollm2-135m)"),
    )

    length: int = parameter(6, "tokens drafted per round at most; the paper's gamma", low=0, high=64)
    threshold: float = parameter(
        0.6,
        "drafting ends behind a token at which the likeliest one is less likely than this; above 1 behind the first; the "
        "paper's eta",
        low=0.0,
        high=2.0,
    )
    adapter: str = parameter("auto", "folder of an adapter; auto: the one shipped for the model", names="file")
    vocabulary: str = parameter(
        FREQUENT,
        "what drafts are made of: the tokens that the model writes most often, or all, as published; the target verifies with "
        "all either way",
        choices=(FREQUENT, ALL),
    )
    rest: bool = parameter(
        True, "greedy rounds go without a draft where rounds without were measured to be faster; false: as published"
    )

    @property
    def adaptive(self) -> bool:
        return False  # the length is chosen while drafting, since drafting is what costs

    def admit(self, request: Request) -> None:
        self._adapter(request)

    def _adapter(self, request: Request) -> Adapter:
        """The adapter, read once. Raises MethodUnavailable where there is none, or it is of another model."""
        from decodery.speculative.kangaroo.adapter import Adapter, shipped

        network = request.host.network
        fingerprint = network.fingerprint()

        def read() -> Adapter | None:
            folder = shipped(fingerprint) if self.adapter == "auto" else Path(self.adapter).expanduser()
            return None if folder is None else Adapter.read(folder)

        found = request.remember(("kangaroo", self.adapter, fingerprint), read, everywhere=True)
        if found is None:
            raise MethodUnavailable(
                f"kangaroo: no adapter is shipped for {network.name}; train one (decodery train kangaroo) and give its folder "
                "as adapter."
            )
        if found.fingerprint != fingerprint:
            raise MethodUnavailable(
                f"kangaroo: the adapter in {self.adapter} was trained for the model {found.fingerprint}, and {network.name} is "
                f"{fingerprint}."
            )
        if found.shape["hidden_size"] != network.hidden or not 1 <= found.exit < network.layers:
            raise MethodUnavailable(
                f"kangaroo: the adapter in {self.adapter} reads rows of {found.shape['hidden_size']} numbers behind layer "
                f"{found.exit}; {network.name} has {network.layers} layers of {network.hidden}."
            )
        return found

    def _voice(self, request: Request) -> Voice:
        """Adapter and head, which all requests share, so that their rows are packed."""
        from decodery.speculative.kangaroo.drafter import Voice

        adapter, network = self._adapter(request), request.host.network
        own: Scorer = request.remember(
            ("kangaroo network", self.adapter, adapter.fingerprint), lambda: adapter.network(network), everywhere=True
        )
        tokens = adapter.tokens if self.vocabulary == FREQUENT else None
        return request.remember(
            ("kangaroo voice", self.adapter, adapter.fingerprint, self.vocabulary),
            lambda: Voice(own, network.head(tokens, normed=False), tokens, network.vocabulary),
            everywhere=True,
        )

    def most_nodes(self) -> int:
        return self.length + 1

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        caches = super().caches(request)
        return [*caches, (self._voice(request).network, caches[0][1])]

    def drafter(self, request: Request) -> KangarooDrafter:
        from decodery.speculative.kangaroo.drafter import KangarooDrafter

        voice = self._voice(request)
        return KangarooDrafter(request, voice, self._adapter(request).exit, self.length, self.threshold)

    def decode(self, request: Request) -> Decoding:
        # What is drawn must not depend on time, so drawn drafts are always made.
        rests = self.rest and request.law.greedy
        yield from speculate(request, self.drafter(request), self.spec(), self.adaptive, self.judge, rests)
