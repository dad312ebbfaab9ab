"""Dated texts around a cut-off: how much words alone tell as the window grows, and whether a score jumps at the cut-off.

Sources: Meeus et al., arXiv 2406.17975 (windows around the training cut-off); Imbens and Lemieux, Journal of Econometrics
142, 2008, section 4 (a line on each side of the cut-off, in one window).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decodery.audit.items import AuditText, around
from decodery.audit.needed import statistics
from decodery.audit.shift import FOLDS, ShiftTest, shift_test
from decodery.errors import BadInput
from decodery.evaluation.intervals import Array

WINDOWS = (1, 3, 6, 12)
"""Months on each side."""


@dataclass(frozen=True)
class DateWindow:
    """A window. shift: None where there are too few texts for the test of words."""

    months: int
    members: int
    others: int
    shift: ShiftTest | None


@dataclass(frozen=True)
class Jump:
    """How much higher a score is just before the cut-off than just after it, with its 95 % interval and p."""

    value: float
    low: float
    high: float
    p: float


def window_sweep(
    items: Sequence[AuditText], cutoff: datetime.date, windows: Sequence[int] = WINDOWS
) -> tuple[DateWindow, ...]:
    """The test of words in each window that has texts on both sides."""
    found = []
    for months in windows:
        try:
            near = around(items, cutoff, months)
        except BadInput:
            found.append(DateWindow(months, 0, 0, None))
            continue
        members = [item.member for item in near]
        count, texts = sum(members), [item.text for item in near]
        enough = min(count, len(near) - count) >= FOLDS
        found.append(DateWindow(months, count, len(near) - count, shift_test(texts, members) if enough else None))
    return tuple(found)


def jump(dates: Sequence[datetime.date], scores: Array, cutoff: datetime.date) -> Jump | None:
    """Regress a score on the days since the cut-off with a line on each side; errors robust to unequal variance (HC3).

    None where a side has texts of fewer than two days. Raises MethodUnavailable without statsmodels.
    """
    days = np.array([(date - cutoff).days for date in dates], dtype=float)
    after = (days >= 0).astype(float)
    if min(len(set(days[after == side])) for side in (0.0, 1.0)) < 2:
        return None
    design = np.stack((np.ones_like(days), 1 - after, days, days * after), axis=1)
    fit = statistics("statsmodels.api").OLS(scores, design).fit(cov_type="HC3")
    low, high = fit.conf_int()[1]
    return Jump(float(fit.params[1]), float(low), float(high), float(fit.pvalues[1]))
