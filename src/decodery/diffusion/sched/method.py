"""SchED: fill everything at once as soon as the model is sure enough of it; the later, the less sure it must be.

Mohamed et al., Fast-Decoding Diffusion Language Models via Progress-Aware Confidence Schedules, 2025, arXiv 2512.02892, and the
official code. With shape=prophet it is the early exit of Li et al., Diffusion Language Models Know the Answer Before Decoding,
2025, arXiv 2508.19982.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

from decodery.diffusion.base import Claim, DiffusionMethod
from decodery.diffusion.loop import model_of
from decodery.diffusion.masked_diffusion import MaskedDiffusionDecoding
from decodery.diffusion.sched.margins import SHAPES, Calibration, Thresholds, margins
from decodery.diffusion.unmasking.base import Asking, CanvasStep, Commit, Rule
from decodery.diffusion.wrapping import WrappingMethod
from decodery.engine.method import Exactness, parameter
from decodery.engine.parameters import not_one_of
from decodery.errors import BadParameter

if TYPE_CHECKING:
    from decodery.diffusion.laws import Laws
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer

log = logging.getLogger("decodery")

STABLE = ({"stability_gate": True}, {"stability_gate": None, "shape": not_one_of("prophet")})
"""The stability gate is on."""


@dataclass(frozen=True)
class Observation:
    """What an exit looks at in one step: the sum of the margins of `count` positions; and how many of `masked` positions have
    `changed` their likeliest token since the step before (all, where there was none)."""

    total: float = 0.0
    count: int = 0
    changed: int = 0
    masked: int = 0

    def __add__(self, other: Observation) -> Observation:
        return Observation(
            self.total + other.total,
            self.count + other.count,
            self.changed + other.changed,
            self.masked + other.masked,
        )


@dataclass(frozen=True)
class Decision:
    """step: its number. mean: of the margins. without_ends: the mean over the positions whose likeliest token is no end token
    (canvases end in many of them, and their margins are large). threshold: of this step. fires: whether this is the exit."""

    step: int
    mean: float
    without_ends: float
    threshold: float
    fires: bool


@dataclass(frozen=True)
class ExitGate:
    """When an exit fires: the mean margin reaches the threshold; and, if it is `stable`, at most the share `max_change` of the
    likeliest tokens has changed in each of more than `patience` steps up to this one."""

    thresholds: Thresholds
    stable: bool = True
    patience: int = 0
    max_change: float = 0.0


@dataclass
class Company:
    """What the requests that exit together have last seen; each looks at the sum."""

    _seen: WeakKeyDictionary[Request, Observation] = field(default_factory=WeakKeyDictionary)
    _sum: Observation | None = None

    def tell(self, request: Request, seen: Observation) -> None:
        """What a request has seen in this step."""
        self._seen[request], self._sum = seen, None

    def pooled(self) -> Observation:
        """The sum over those that are not over. It stands until somebody tells something new: who exits by it in this step
        still counts for the others."""
        if self._sum is None:
            running = (seen for request, seen in self._seen.items() if request.finish_reason is None)
            self._sum = sum(running, Observation())
        return self._sum


class Exit(Rule):
    """Another rule, with an exit: when it fires, all masked offsets of the region get their likeliest tokens.

    It remembers the step before, so each request has its own. whole: the region is the canvas, and not the block alone.
    counts_ends: whether positions whose likeliest token is an end token count in the mean; if no others are left, they do.
    company: the requests it decides with.
    """

    def __init__(
        self,
        rule: Rule,
        gate: ExitGate,
        request: Request,
        *,
        whole: bool = True,
        counts_ends: bool = True,
        company: Company | None = None,
    ):
        self.rule, self.gate, self.request, self.whole, self.counts_ends = rule, gate, request, whole, counts_ends
        self.company = company
        model = model_of(request)
        self._ends = frozenset((*model.end_token_ids, *model.filling_token_ids))
        self.decisions: list[Decision] = []
        """All of them so far, for who wants to know why it did or did not exit."""
        self._previous: dict[int, int] = {}
        self._stable_steps = 0

    def choose(self, laws: Laws, step: CanvasStep) -> Commit | Asking[Commit]:
        if self.company is not None:
            return self._choose_together(laws, step, self.company)
        return self._choose(laws, step, self._observe(laws, step))

    def _choose_together(self, laws: Laws, step: CanvasStep, company: Company) -> Asking[Commit]:
        company.tell(self.request, self._observe(laws, step))
        yield ()  # a round without a forward: the others tell what they have seen
        commit = self._choose(laws, step, company.pooled())
        if isinstance(commit, Generator):
            commit = yield from commit
        return commit

    def _region(self, laws: Laws, step: CanvasStep) -> Laws:
        return laws if self.whole else laws.within(step.start, step.end)

    def _observe(self, laws: Laws, step: CanvasStep) -> Observation:
        region = self._region(laws, step)
        tokens = region.best.tolist()
        values = margins(region.scores).tolist()
        before, self._previous = self._previous, dict(zip(region.offsets, tokens, strict=True))
        changed = sum(before.get(offset) != token for offset, token in self._previous.items())
        inner = [value for value, token in zip(values, tokens, strict=True) if token not in self._ends]
        self._without_ends = math.fsum(inner) / len(inner) if inner else math.inf
        counted = values if self.counts_ends or not inner else inner
        return Observation(math.fsum(counted), len(counted), changed, len(values))

    def _choose(self, laws: Laws, step: CanvasStep, seen: Observation) -> Commit | Asking[Commit]:
        calm = step.number > 0 and seen.changed <= self.gate.max_change * seen.masked
        self._stable_steps = self._stable_steps + 1 if calm else 0
        mean, threshold = seen.total / seen.count, self.gate.thresholds.at(step.number, step.total)
        fires = mean >= threshold and (not self.gate.stable or self._stable_steps > self.gate.patience)
        self.decisions.append(Decision(step.number, mean, self._without_ends, threshold, fires))
        log.debug("sched: %s", self.decisions[-1])
        if fires:
            region = self._region(laws, step)
            return Commit.at(region, range(len(region)), region.best.tolist())
        return self.rule.choose(laws if self.rule.whole_canvas else laws.within(step.start, step.end), step)


class CanvasExit(Exit):
    """An exit that is shown every masked offset."""

    whole_canvas: ClassVar[bool] = True


@dataclass(frozen=True)
class SchED(WrappingMethod):
    """Decode as any sampler does, and fill all that is left once its margins reach a threshold that falls with progress."""

    name: ClassVar[str] = "sched"
    title: ClassVar[str] = "SchED"
    paper: ClassVar[str] = (
        "Mohamed et al., Fast-Decoding Diffusion Language Models via Progress-Aware Confidence Schedules, 2025, "
        "arXiv 2512.02892"
    )
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING

    sampler: str | None = parameter(
        None,
        "what decodes until the exit: a method such as adablock, in quotes if with parameters",
        auto="masked-diffusion",
        names="method",
    )
    shape: str = parameter("linear", "how the threshold falls; prophet: that method's three steps", choices=SHAPES)
    threshold_high: float | None = parameter(
        None, "mean margin of raw scores that ends the decoding at its start", auto="the calibration's, else 7.5"
    )
    threshold_low: float | None = parameter(None, "the same at the end", auto="the calibration's, else 2.5")
    slope: float = parameter(4.0, "how fast the threshold falls", low=0.0, only={"shape": "exponential"})
    calibration: str | None = parameter(
        None,
        "a file that decodery train exit-thresholds wrote for the model",
        auto="none",
        only=({"threshold_high": None}, {"threshold_low": None}),
        names="file",
    )
    stability_gate: bool | None = parameter(
        None, "exit only if the likeliest tokens have not changed since the last step", auto="yes, but not of prophet"
    )
    patience: int = parameter(0, "how many further steps they must not have changed", low=0, only=STABLE)
    max_change: float = parameter(0.0, "share of them that counts as no change", low=0.0, high=1.0, only=STABLE)
    region: str = parameter(
        "canvas", "what is looked at and filled: all that is masked, or the block alone", choices=("canvas", "block")
    )
    ends: str = parameter(
        "counted", "positions whose likeliest token is an end token are counted in the mean, or not",
        choices=("counted", "left_out"),
    )  # fmt: skip
    average: str = parameter(
        "request", "whose margins decide: the request's, or those of all that are decoded together",
        choices=("request", "joint"),
    )  # fmt: skip

    def default_sampler(self) -> DiffusionMethod:
        return MaskedDiffusionDecoding()

    def check(self) -> None:
        if self.region == "canvas" and self.cache == "dual":
            raise BadParameter("sched: the dual cache scores the block alone; choose region=block or another cache.")
        if self.calibration is None:
            self._checked(self.thresholds())

    def _checked(self, given: Thresholds) -> Thresholds:
        if given.low > given.high or (given.low != given.high and math.isinf(given.high - given.low)):
            raise BadParameter(
                f"sched: the threshold cannot fall from {given.high:g} to {given.low:g}; threshold_low must be at most "
                "threshold_high, and both finite or the same."
            )
        return given

    def thresholds(self, model: str = "") -> Thresholds:
        """The thresholds of a request. Raises BadParameter for a calibration that cannot be read or is another model's."""
        high, low = Thresholds.high, Thresholds.low
        if self.calibration is not None:
            read = Calibration.read(Path(self.calibration))
            if read.model != model:
                raise BadParameter(f"sched: {self.calibration} was made for {read.model}, not for {model}.")
            high, low = read.high, read.low
        high = high if self.threshold_high is None else self.threshold_high
        low = low if self.threshold_low is None else self.threshold_low
        return self._checked(Thresholds(high, low, self.shape, self.slope))

    def admit(self, request: Request) -> None:
        super().admit(request)
        self.thresholds(request.host.network.name)

    def claims(self) -> tuple[Claim, ...]:
        never = self.varied(threshold_high=math.inf, threshold_low=math.inf)
        return (
            Claim("without an exit it is its sampler", never, self.inner()),
            Claim("the same at a temperature", never, self.inner(), temperature=1.0),
        )

    @functools.cached_property
    def _companies(self) -> WeakKeyDictionary[Scorer, Company]:
        return WeakKeyDictionary()

    def _company(self, network: Scorer) -> Company:
        """The requests of one call, which share the method object. Who is done takes no part, so old company does no harm."""
        return self._companies.setdefault(network, Company())

    def unmasking(self, request: Request) -> Exit:
        rule, whole = super().unmasking(request), self.region == "canvas"
        stable = self.shape != "prophet" if self.stability_gate is None else self.stability_gate
        gate = ExitGate(self.thresholds(request.host.network.name), stable, self.patience, self.max_change)
        company = self._company(request.host.network) if self.average == "joint" else None
        return (CanvasExit if whole or rule.whole_canvas else Exit)(
            rule, gate, request, whole=whole, counts_ends=self.ends == "counted", company=company
        )
