"""What an experiment is: arms that measure the same items, figures of what they measured, and what a paper says of them.

An experiment declares one or more studies. Each item is measured by every arm before the next one comes (the arms take turns
in going first), so whatever else the machine does harms all arms alike, and differences between arms are paired. A figure has
a 95 % interval over the items; a claim is decided by the interval of a paired difference.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from decodery.evaluation.intervals import Array, percentiles, resamples, wilson

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from decodery.language_model import LanguageModel

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)
Outcome = TypeVar("Outcome")
Values = Mapping[str, float]
"""What an arm measured of one item, by name. A figure looks only at the items that have its names."""

YES, NO, OPEN = "yes", "no", "not resolved"


@dataclass(frozen=True)
class Arm:
    """One way of doing it. measure: what it makes of an item."""

    name: str
    measure: Callable[[Any], Values]


@dataclass(frozen=True)
class Figure:
    """A column: a mean over items of what is called `of`; the ratio of totals where there is a `per`; the median where it is
    `middle`. share: each item says yes (1) or no (0), so that the interval is Wilson's, and items that all say the same
    decide no claim. statistic: instead of a mean, a function of the items' weights [draws + 1, items] and of what is called
    `of` and `per` [items], which gives [draws + 1]. against: an arm; the figure is then this arm's over that one's. derive:
    instead of all that, a function of a look-up (arm, figure's name -> [draws + 1]) and the arm's name. form, unit: how a
    number is written."""

    name: str
    of: str = ""
    per: str = ""
    middle: bool = False
    share: bool = False
    statistic: Callable[[Array, Array, Array], Array] | None = None
    against: str = ""
    derive: Callable[[Callable[[str, str], Array], str], Array] | None = None
    form: str = ".2f"
    unit: str = ""


@dataclass(frozen=True)
class PublishedClaim:
    """What a source says: that a figure of one arm is above that of another, or above a number; below, where it is not
    `above`.

    every: the figure is a yes (1) or no (0) of each item, and all must be yes; `than` says nothing then.
    """

    says: str
    figure: str
    arm: str
    than: str | float = 0.0
    above: bool = True
    every: bool = False


@dataclass(frozen=True)
class Study:
    """A table. about: what is measured on which items, for the line below it. arms_are: head of the first column."""

    about: str
    items: Sequence[Any]
    arms: Sequence[Arm]
    figures: Sequence[Figure]
    claims: Sequence[PublishedClaim] = ()
    arms_are: str = "method"
    lm: LanguageModel | None = None


@dataclass(frozen=True)
class Experiment:
    """An experiment. slug: names its file here and its results. measures: modules or packages whose code the figures depend
    on. settings: sizes and seeds with their defaults; every field is an option of the command. studies: by name of their
    tables.
    """

    slug: str
    title: str
    source: str
    measures: tuple[str, ...]
    settings: DataclassInstance
    studies: Mapping[str, Callable[[Any], Study]]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ClaimResult:
    """A decided claim. difference: of the two figures; None where all of something was claimed. holds: YES, NO or OPEN."""

    claim: PublishedClaim
    difference: Estimate | None
    holds: str


@dataclass
class Outcomes:
    """What the arms measured. values: by arm, one entry per item."""

    study: Study
    values: dict[str, list[Values]]
    _weights: Array | None = field(default=None, repr=False)

    @property
    def weights(self) -> Array:
        """See `resamples`."""
        if self._weights is None:
            self._weights = resamples(len(self.study.items))
        return self._weights

    def drawn(self, arm: str, name: str) -> Array:
        """A figure of an arm: [draws + 1], of the sample and of its resamples. Raises KeyError where the study has none."""
        figures = {figure.name: figure for figure in self.study.figures}
        return self._drawn(arm, figures[name])

    def _drawn(self, arm: str, figure: Figure) -> Array:
        if figure.derive is not None:
            return figure.derive(self.drawn, arm)
        own = self._plain(arm, figure)
        if not figure.against:
            return own
        with np.errstate(divide="ignore", invalid="ignore"):
            return own / self._plain(figure.against, figure)

    def _plain(self, arm: str, figure: Figure) -> Array:
        counted = self._column(arm, figure.of)
        there = np.isfinite(counted)
        if figure.statistic is not None:
            return figure.statistic(self.weights[:, there], counted[there], self._column(arm, figure.per)[there])
        weights = self.weights * there
        if figure.middle:
            return np.array([_median(counted, row) for row in weights])
        total = weights @ np.where(there, counted, 0.0)
        if figure.per:
            below = self._column(arm, figure.per)
            under = self.weights @ np.where(np.isfinite(below), below, 0.0)
        else:
            under = weights.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return total / under

    def _column(self, arm: str, name: str) -> Array:
        return np.array([float(values.get(name, np.nan)) for values in self.values[arm]])

    def estimate(self, arm: str, figure: Figure) -> Estimate | None:
        """A cell of the table; None where the arm has no such number."""
        if figure.derive is None and not np.isfinite(self._column(arm, figure.of)).any():
            return None
        drawn = self._drawn(arm, figure)
        if not np.isfinite(drawn[0]):
            return None
        interval = percentiles(drawn) if len(self.study.items) > 1 else None
        if figure.share and figure.derive is None:
            column = self._column(arm, figure.of)
            known = column[np.isfinite(column)]
            interval = wilson(int(known.sum()), len(known)) if len(known) > 1 else None
        if figure.against == arm:
            interval = None
        return Estimate(float(drawn[0]), *(interval or (None, None)))

    def verdict(self, claim: PublishedClaim) -> ClaimResult:
        """Whether the direction of a claim holds here: by the interval of the paired difference."""
        figure = next(figure for figure in self.study.figures if figure.name == claim.figure)
        if claim.every:
            column = self._column(claim.arm, figure.of)
            return ClaimResult(claim, None, YES if (column[np.isfinite(column)] == 1.0).all() else NO)
        drawn = self.drawn(claim.arm, claim.figure)
        drawn = drawn - (self.drawn(claim.than, claim.figure) if isinstance(claim.than, str) else claim.than)
        if not np.isfinite(drawn[0]):
            return ClaimResult(claim, None, OPEN)
        interval = percentiles(drawn) if len(self.study.items) > 1 else None
        low, high = interval or (None, None)
        wanted = (low, high) if claim.above else (None if high is None else -high, None if low is None else -low)
        holds = OPEN
        if figure.share and low == high:  # items that all say the same: another one may say something else
            return ClaimResult(claim, Estimate(float(drawn[0]), low, high), OPEN)
        if wanted[0] is not None and wanted[0] > 0:
            holds = YES
        elif wanted[1] is not None and wanted[1] < 0:
            holds = NO
        return ClaimResult(claim, Estimate(float(drawn[0]), low, high), holds)


def _median(values: Array, weights: Array) -> float:
    """The weighted median; not a number where nothing has weight."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    if reached[-1] == 0:
        return float("nan")
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def measure(study: Study, tell: Callable[[int, int], None] = lambda done, total: None) -> Outcomes:
    """Measure every item with every arm. tell: is given how many of how many measurements are done. Raises ValueError, before
    anything is measured, where the study names what it does not have."""
    names = [arm.name for arm in study.arms]
    if len(set(names)) < len(names) or not study.items:
        raise ValueError("a study needs items, and arms of different names")
    figures = {figure.name for figure in study.figures}
    arms = {*(claim.arm for claim in study.claims), *(f.against for f in study.figures if f.against)}
    arms |= {claim.than for claim in study.claims if isinstance(claim.than, str)}
    if unknown := {*(arms - set(names)), *({claim.figure for claim in study.claims} - figures)}:
        raise ValueError(f"the study has no arm or figure {', '.join(sorted(unknown))}")
    values: dict[str, list[Values]] = {name: [] for name in names}
    done, total = 0, len(study.items) * len(names)
    for number, item in enumerate(study.items):
        first = number % len(study.arms)
        for arm in (*study.arms[first:], *study.arms[:first]):
            values[arm.name].append(arm.measure(item))
            done += 1
            tell(done, total)
    return Outcomes(study, values)


def once_per_item(work: Callable[[Key], Outcome]) -> Callable[[Key], Outcome]:
    """For what several arms look at: done for each item when the first of them asks, and forgotten with the next item."""
    kept: list[tuple[Key, Outcome]] = []

    def asked(item: Key) -> Outcome:
        if not kept or kept[0][0] != item:
            kept[:] = [(item, work(item))]
        return kept[0][1]

    return asked
