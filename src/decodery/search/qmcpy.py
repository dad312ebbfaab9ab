"""An expectation over the model's texts, estimated from low-discrepancy samples until its error bar is small.

Sorokin, QMCPy: A Python Software for Randomized Low-Discrepancy Sequences, Quasi-Monte Carlo, and Fast Kernel Methods, 2025;
samples are those of arithmetic sampling (Vilnis et al. 2023, arXiv 2210.15458).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import np
from decodery.engine.method import Exactness, admit, parameter
from decodery.engine.parameters import unused
from decodery.errors import BadParameter, Refused
from decodery.sampling.chance import LowDiscrepancy
from decodery.sampling.chance.qmcpy import imported
from decodery.sampling.estimates import FastKernel, MeanEstimate, of_replications
from decodery.sampling.noise import Numbers, Stage
from decodery.search.tries import Try, TryingMethod

if TYPE_CHECKING:
    from jaxtyping import Float64

    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer


@dataclass(frozen=True)
class LowDiscrepancyEstimate(TryingMethod):
    """Draw texts from randomised low-discrepancy sets, which grow until the mean of what is asked of them is known well enough;
    the first of them are the reply."""

    name: ClassVar[str] = "qmcpy"
    title: ClassVar[str] = "Estimates from low-discrepancy samples"
    paper: ClassVar[str] = (
        "Sorokin, QMCPy: A Python Software for Randomized Low-Discrepancy Sequences, Quasi-Monte Carlo, and Fast Kernel "
        "Methods, 2025; Vilnis et al., Arithmetic Sampling, 2023, arXiv 2210.15458"
    )
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING

    samples: int = parameter(32, "most texts that are drawn", low=2, high=1024)
    at_once: int | None = unused(None)
    of: str = parameter(
        "log-probability",
        "what of a text is averaged: its log probability, how many tokens it has, whether it contains a text",
        choices=("log-probability", "tokens", "contains"),
    )
    text: str = parameter("", "the text that is looked for", only={"of": "contains"})
    points: str = parameter("lattice", "the set of points", choices=("lattice", "net", "halton", "kronecker"))
    replications: int = parameter(8, "sets that are randomised independently", low=2, high=64)
    least: int = parameter(2, "points of each set at first; then twice as many, and so on", low=1, high=512)
    tolerance: float = parameter(0.05, "half the width of the interval at which it stops", low=0.0)
    confidence: float = parameter(0.95, "of the interval", low=0.5, high=0.9999)
    kernel: bool = parameter(
        False, "tell as well what error a fast kernel finds from one set alone", only={"points": ("lattice", "net")}
    )

    def check(self) -> None:
        if self.of == "contains" and not self.text:
            raise BadParameter(f"{self.name}: of=contains needs the text that is looked for, as text='…'.")
        if self.least & (self.least - 1):
            raise BadParameter(f"{self.name}: least must be a power of 2, not {self.least}.")
        if self.first > self.samples:
            raise BadParameter(
                f"{self.name}: the first {self.replications} sets of {self.least} points are {self.first} texts, which is more "
                f"than samples={self.samples}."
            )
        if self.kernel and self.least < 2:
            raise BadParameter(f"{self.name}: a kernel needs 2 points of a set or more, and least is {self.least}.")
        if self.inner.exactness is Exactness.IDENTICAL_TO_SAMPLING:
            raise BadParameter(
                f"{self.name}: {self.inner.name} draws its drafts, and points serve the target's tokens alone."
            )

    @property
    def first(self) -> int:
        """Texts that are drawn in any case."""
        return self.replications * self.least

    @cached_property
    def source(self) -> LowDiscrepancy:
        """Where their points come from."""
        return LowDiscrepancy(points=self.points, replications=self.replications)

    def admit(self, request: Request) -> None:
        if request.n > self.first:
            raise Refused(
                f"{self.name} gives at most the texts that it surely draws, replications times least = {self.first}, and n is "
                f"{request.n}."
            )
        if self.points != "lattice" or self.kernel:
            imported()
        admit(self.inner, request)

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        most = self.first
        while most * 2 <= self.samples:
            most *= 2
        return self.inner.caches(request) * max(most // 2, self.first)

    def next_tries(self, request: Request, tries: Sequence[Try]) -> range:
        done = len(tries)
        if request.law.greedy:
            return range(0 if done else request.n)
        if done == 0:
            return range(self.first)
        enough = self.estimate(tries).half_width <= self.tolerance or 2 * done > self.samples
        return range(0 if enough else done, 0 if enough else 2 * done)

    def attempt(self, request: Request, number: int) -> Request:
        """Sample `number` of as many as the sets then have: the first points of a larger set are the smaller one."""
        if request.law.greedy:
            return request.attempt(number, request.n)
        of = self.first
        while of <= number:
            of *= 2
        return request.attempt(number, of, chance=self.source, seed=self.seed(request))

    def seed(self, request: Request) -> int:
        """What randomises the sets: a draw of the request's own chance."""
        noise, place = request.noise, len(request.prompt)
        if not isinstance(noise, Numbers):
            raise Refused(f"{self.name} reads texts from numbers, and this chance decides without any.")
        key = noise.key(place, Stage.TARGET, (self.name,))
        noise.note(place, Stage.TARGET, (self.name,), key)
        return key % 2**63

    def value(self, one: Try) -> float:
        """What is averaged."""
        if self.of == "log-probability":
            return one.log_probability
        return float(len(one.output.new_tokens) if self.of == "tokens" else self.text in one.output.text)

    def values(self, tries: Sequence[Try]) -> Float64[np.ndarray, "replications n"]:
        """Of all tries, by set."""
        return np.array([self.value(one) for one in tries]).reshape(-1, self.replications).T

    def estimate(self, tries: Sequence[Try]) -> MeanEstimate:
        """Of the expectation."""
        return of_replications(self.values(tries), self.confidence)

    def ranked(self, request: Request, tries: Sequence[Try]) -> list[tuple[Try, float, float]]:
        """In the order in which they were drawn: each is an exact sample, whatever its value."""
        drawn = [(one, self.value(one), 1.0) for one in tries]
        sure = drawn[0][1]
        told = MeanEstimate(sure, 0.0, sure, sure) if request.law.greedy else self.estimate(tries)
        request.statistics.details["estimate"] = {"of": self.of, "samples": len(tries), **dataclasses.asdict(told)}
        if self.kernel and not request.law.greedy:
            request.statistics.details["estimate"]["kernel_errors"] = self.kernel_errors(request, tries)
        return drawn

    def kernel_errors(self, request: Request, tries: Sequence[Try]) -> list[float]:
        """The standard error of the mean of each set, from that set alone."""
        values, sets = self.values(tries), self.source.sets(self.seed(request), request.prompt, len(tries))
        return [FastKernel(self.source, own).error(found) for own, found in zip(sets, values, strict=True)]
