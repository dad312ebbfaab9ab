"""Soft thinking: while the model thinks, what is fed is a mixture of the likeliest tokens' embeddings.

Wu et al., LLMs are Single-threaded Reasoners: Demystifying the Working Mechanism of Soft Thinking, 2025, arXiv 2508.03440.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from decodery._lazy import torch
from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.engine.needs import NEXT_TOKENS, MoreThanChains, Requirement
from decodery.engine.parameters import above
from decodery.engine.stepping import Choice, Picker, step_by_step
from decodery.errors import BadParameter, Refused
from decodery.sampling.noise import Numbers, Stage
from decodery.search.soft_thinking.weights import dirichlet, gumbel_softmax, heaviest

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.request import Request
    from decodery.models.forward import Scores
    from decodery.models.sequence import Sequence

DIRICHLET = ("dirichlet",)
"""Index of the draw of Dirichlet weights. Gumbel noise has the address of the token's own draw: with nothing left to mix, the
tokens are those that a race of the plain law draws."""


@dataclass(frozen=True)
class SoftThinking(Method):
    """Think with mixtures: feed the weighted mean of the likeliest tokens' embeddings in place of a token, with weights of the
    law or drawn around it, and answer with tokens."""

    name: ClassVar[str] = "soft-thinking"
    title: ClassVar[str] = "Soft thinking with randomness"
    paper: ClassVar[str] = (
        "Wu et al., LLMs are Single-threaded Reasoners: Demystifying the Working Mechanism of Soft Thinking, 2025, "
        "arXiv 2508.03440 (ICLR 2026; github WJMacro/Randomized-Soft-Thinking); after Zhang et al., 2025, arXiv 2505.15778"
    )
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "search"
    needs: ClassVar[tuple[Requirement, ...]] = (NEXT_TOKENS, MoreThanChains("feeds mixtures of embeddings"))

    noise: str = parameter(
        "gumbel",
        "how weights are drawn: not at all (vanilla), Dirichlet around the law, Gumbel-softmax, or one after the other",
        choices=("vanilla", "dirichlet", "gumbel", "both"),
    )
    components: int = parameter(10, "most tokens of a mixture (max_topk)", low=1)
    tau: float = parameter(
        0.5, "temperature of the Gumbel-softmax; 0: a single token, drawn", low=0.0, only={"noise": ("gumbel", "both")}
    )
    concentration: float = parameter(
        4.0, "of the Dirichlet law; the greater, the nearer to the law", low=1e-9, only={"noise": ("dirichlet", "both")}
    )
    steps: int = parameter(64, "most steps of thinking", low=0)
    end: str = parameter(
        "", "text that ends thinking and is fed as it is, such as </think>; empty: the steps alone end it"
    )
    cold_steps: int = parameter(0, "so many steps of low entropy in a row end thinking, too; 0: never", low=0)
    cold_entropy: float = parameter(
        0.1, "entropy below which a step counts as such", low=0.0, only={"cold_steps": above(0)}
    )
    cold_unit: str = parameter(
        "nats",
        "of that entropy: nats, or the share of the logarithm of the vocabulary",
        choices=("nats", "share"),
        only={"cold_steps": above(0)},
    )

    def admit(self, request: Request) -> None:
        source = request.settings.chance
        if source.target_only and not request.law.greedy:
            raise Refused(f"{self.name} does not run with chance {source.name}: {source.target_only}.")
        try:
            request.network.embed(torch.zeros(1, dtype=torch.long))
        except ValueError as error:
            raise Refused(f"{self.name} feeds mixtures of embeddings: {error}.") from None
        if self.end and not request.host.encode(self.end):
            raise BadParameter(f"{self.name}: the model has no tokens for the end {self.end!r}.")

    def decode(self, request: Request) -> Decoding:
        if self.noise != "vanilla" and not isinstance(request.noise, Numbers):
            raise Refused(f"{self.name} draws vectors of noise, which this source of chance does not have.")
        return step_by_step(request, Thinking(self, request))


@dataclass(eq=False)
class Thinking(Picker):
    """Where one text stands. soft: whether it still thinks. due: tokens of the end that are set next. cold: steps of low
    entropy in a row. told: what each soft step fed."""

    method: SoftThinking
    request: Request
    soft: bool = True
    due: list[int] = field(default_factory=list)
    cold: int = 0
    told: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.marker = list(self.request.host.encode(self.method.end)) if self.method.end else []
        self.request.statistics.details["thinking"] = self.told
        self.request.statistics.details["ended"] = None

    def pick(self, request: Request, sequence: Sequence, scores: Scores) -> Choice:
        row = scores.logits[0]
        if self.soft and not self.due:
            entropy = self._entropy(row)
            reason = self._reason(entropy)
            if reason is None:
                return self._mixture(row, entropy)
            self.soft, self.due = False, list(self.marker)
            request.statistics.details["ended"] = reason
        return Choice(self.due.pop(0) if self.due else request.draw(row))

    def _entropy(self, row: Tensor) -> float:
        """Of the model's law at the temperature, before anything is left out; 0 in greedy decoding."""
        temperature = self.request.settings.temperature
        if temperature == 0:
            return 0.0
        nats = float(torch.special.entr((row.double() / temperature).softmax(-1)).sum())
        return nats / math.log(len(row)) if self.method.cold_unit == "share" else nats

    def _reason(self, entropy: float) -> str | None:
        """Why thinking ends before this step, if it does."""
        method = self.method
        if len(self.told) >= method.steps:
            return "steps"
        if method.cold_steps:
            self.cold = self.cold + 1 if entropy < method.cold_entropy else 0
            if self.cold >= method.cold_steps:
                return "cold"
        return None

    def _mixture(self, row: Tensor, entropy: float) -> Choice:
        """A soft step: the heaviest token is the one that is written; the whole mixture is fed."""
        method, request = self.method, self.request
        weights, noise, position = request.law.probabilities(row).double().cpu(), request.noise, request.position
        drawn = "vanilla" if request.law.greedy else method.noise
        if drawn in ("dirichlet", "both"):
            assert isinstance(noise, Numbers)
            key = noise.key(position, Stage.TARGET, DIRICHLET)
            noise.note(position, Stage.TARGET, DIRICHLET, key)
            weights = dirichlet(weights, method.concentration, key)
        ids, shares = heaviest(weights, method.components)
        if drawn in ("gumbel", "both"):
            assert isinstance(noise, Numbers)
            noise.note(position, Stage.TARGET, 0, noise.key(position, Stage.TARGET))
            numbers = noise.uniforms(len(row), position, Stage.TARGET)[ids]
            order, shares = gumbel_softmax(shares, numbers, method.tau)
            ids = ids[order]
        token = int(ids[0])
        self.told.append({"entropy": entropy, "ids": ids.tolist(), "weights": shares.tolist()})
        text = [*request.new_tokens, token]
        if self.marker and text[-len(self.marker) :] == self.marker:  # what ends thinking is fed as a token
            self.soft = False
            request.statistics.details["ended"] = "end"
            return Choice(token)
        if float(shares[0]) == 1.0:
            return Choice(token)
        mixed = torch.zeros(1, len(row))
        mixed[0, ids] = shares.float()
        return Choice(token, request.network.embed(mixed))
