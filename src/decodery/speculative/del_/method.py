"""DEL: the target's first layers draft, its others verify; where to exit and how far to draft follows the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Exactness, parameter
from decodery.engine.needs import NEXT_TOKENS, Artifact, MoreThanChains, Requirement, Taps
from decodery.errors import BadParameter, MethodUnavailable
from decodery.speculative.del_.drafter import ExitDrafter, Options, Speech
from decodery.speculative.del_.exit_choice import ExitPrice, ExitStatistics
from decodery.speculative.loop import SpeculativeMethod

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.speculative.del_.exits import ExitAdapters

CHOOSING = ({"exit": None}, {"length": None})
"""Exits are watched, so that one of them or a length can be chosen."""


@dataclass(frozen=True)
class DynamicExit(SpeculativeMethod):
    """The target's first layers draft and the others verify, on one cache. Every verified row shows what each exit would
    have drafted, and the exit and length with the most tokens per layer draft next. Wants exits that were trained."""

    name: ClassVar[str] = "del"
    title: ClassVar[str] = "DEL: dynamic exit layer"
    paper: ClassVar[str] = "Entezari Zarch et al., COLM 2025, arXiv 2504.05598; LayerSkip, arXiv 2404.16710"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
    family: ClassVar[str] = "speculative"
    refuses: ClassVar[Mapping[str, str]] = {
        "target": "its later layers go on from the hidden rows of earlier ones, which several members together do not have"
    }
    needs: ClassVar[tuple[Requirement, ...]] = (
        NEXT_TOKENS,
        MoreThanChains("drafts with the target's first layers"),
        Taps(),
        Artifact("a model trained for early exit, or exit adapters (shipped for smollm2-135m)"),
    )

    exit: int | None = parameter(
        None, "draft with this many layers always", low=1, high=1024, auto="by tokens per layer"
    )
    length: int | None = parameter(None, "tokens drafted per round", low=0, high=64, auto="by `policy`")
    policy: str = parameter(
        "threshold",
        "what ends a draft: a token less likely than the exit's threshold, or the length with the most tokens per layer",
        choices=("threshold", "fixed"),
        only={"length": None},
    )
    max_draft: int = parameter(18, "tokens drafted per round at most", low=1, high=64, only={"length": None})
    exits: str | int = parameter(
        "auto", "layers after which to exit, as 4+5+10; auto: those with adapters, else all", only={"exit": None}
    )
    adapters: str = parameter(
        "auto",
        "folder of exit adapters; auto: those shipped for model and exits; off: the model's own head",
        names="file",
    )
    omega: float = parameter(0.95, "what a round leaves of the older statistics", low=0.0, high=1.0, only=CHOOSING)
    context: int = parameter(32, "prompt positions that count in the first round", low=0, high=4096, only=CHOOSING)
    cost: str = parameter(
        "measured",
        "what tokens are divided by: layers alone, as published, or also heads and rows on this machine's cost curve",
        choices=("layers", "measured"),
        only=CHOOSING,
    )
    bypass: bool = parameter(True, "decode plainly where that has the most tokens per layer", only={"length": None})
    clip: bool = parameter(True, "do not count what was drafted after a wrong token", only=CHOOSING)

    @property
    def adaptive(self) -> bool:
        return False  # the length is chosen before drafting, since drafting is what costs

    def admit(self, request: Request) -> None:
        adapters = self._adapters(request)
        self._spoken(self._exits(request, adapters), adapters)

    def _adapters(self, request: Request) -> ExitAdapters | None:
        """The exit adapters, read once. Raises MethodUnavailable where they are not there, or are of another model."""
        if self.adapters == "off":
            return None
        from decodery.speculative.del_.exits import ExitAdapters, shipped

        fingerprint = request.host.network.fingerprint()

        def read() -> ExitAdapters | None:
            folder = shipped(fingerprint) if self.adapters == "auto" else Path(self.adapters).expanduser()
            return None if folder is None else ExitAdapters.read(folder)

        found = request.remember(("exit adapters", self.adapters, fingerprint), read, everywhere=True)
        if found is not None and found.fingerprint != fingerprint:
            raise MethodUnavailable(
                f"del: the adapters in {self.adapters} were trained for the model {found.fingerprint}, "
                f"and {request.host.network.name} is {fingerprint}."
            )
        return found

    def _exits(self, request: Request, adapters: ExitAdapters | None) -> tuple[int, ...]:
        """The eligible exits, ascending. Raises MethodUnavailable or BadParameter."""
        network = request.host.network
        exits: tuple[int, ...]
        if self.exit is not None:
            exits = (self.exit,)
        elif self.exits == "auto":
            exits = adapters.exits if adapters else tuple(range(1, network.layers))
        else:
            try:
                exits = tuple(sorted({int(part) for part in str(self.exits).split("+")}))
            except ValueError:
                raise BadParameter(f"del: exits are written as 4+5+10, not {self.exits!r}.") from None
        last = network.layers if self.exit is not None else network.layers - 1
        if not exits or not 1 <= exits[0] <= exits[-1] <= last:
            raise MethodUnavailable(
                f"del: {network.name} has {network.layers} layers, so one can exit after 1 to {network.layers - 1} of them, "
                f"not after {'+'.join(map(str, exits)) or 'none'}."
            )
        return exits

    def _spoken(self, exits: tuple[int, ...], adapters: ExitAdapters | None) -> ExitAdapters | None:
        """The adapters, where they are for all these exits; what ships with decodery steps back for other exits."""
        if adapters is None or set(exits) <= set(adapters.exits):
            return adapters
        if self.adapters == "auto":
            return None
        raise MethodUnavailable(
            f"del: the adapters in {self.adapters} are for the exits {'+'.join(map(str, adapters.exits))}, "
            f"not for {'+'.join(map(str, exits))}."
        )

    def most_nodes(self) -> int:
        return max(self.length or 0, self.max_draft) + 1

    def drafter(self, request: Request) -> ExitDrafter:
        network = request.host.network
        adapters = self._adapters(request)
        exits = self._exits(request, adapters)
        trained = self._spoken(exits, adapters)
        speech = request.remember(
            ("exit head", self.adapters, trained is not None, network.name),
            lambda: Speech(network.head(None if trained is None else trained.tokens), trained, network.vocabulary),
            everywhere=True,
        )
        dynamic = self.exit is None or self.length is None
        price = self._price(request, trained, len(exits)) if dynamic else None
        options = Options(
            exit=self.exit,
            length=self.length,
            most=self.max_draft,
            by_threshold=self.policy == "threshold",
            context=self.context,
            bypass=self.bypass,
            clip=self.clip,
        )
        return ExitDrafter(request, options, speech, ExitStatistics(exits, self.omega), price)

    def _price(self, request: Request, adapters: ExitAdapters | None, exits: int) -> ExitPrice:
        network = request.host.network
        if self.cost == "layers":
            return ExitPrice(network.layers)
        work = network.work
        full = work.head / work.layer
        draft = full
        if adapters is not None:
            down, up = next(iter(adapters.weights.values()))
            draft = full * len(adapters.tokens) / network.vocabulary + (down.numel() + up.numel()) / work.layer
        return ExitPrice(network.layers, draft, full, exits, request.host.cost(network))
