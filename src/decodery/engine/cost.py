"""What a forward costs on this machine: seconds by number of rows and by context, measured once and kept.

On a GPU scoring sixteen rows costs what one row costs; on a CPU it does not, and the more tokens are cached, the more of a pass
is attention. Draft sizes, and how much of a long prompt is read at a time, are therefore chosen on the measured curves of this
network on this machine, not on a constant.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from decodery._version import __version__
from decodery.models.native.build import chosen_set
from decodery.models.processors import CPUINFO, processors

if TYPE_CHECKING:
    from decodery.models.scorer import Scorer

CALIBRATION_ROWS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64, 128, 256)
CALIBRATION_CONTEXTS = (64, 256, 1024)
USUAL_CONTEXT = 256
"""The context of a curve where nobody says which."""
REPEATS = 5
MOST_SECONDS = 3.0
"""What measuring may take, more or less. A slow network is measured less often, by fewer rows and after fewer contexts."""
LONGEST_SECONDS = 0.2
"""A forward that takes longer is the last one that is measured; the curve goes on as a line."""
DEAR_SECONDS = 0.05
"""A forward that takes longer is timed once: what disturbs it is small beside it."""
CONTEXT_STEP = 64
"""Curves between the measured contexts are made for multiples of so many tokens."""
PROCESSOR = ("vendor_id", "model name", "cpu family", "model", "stepping")
ARM_PROCESSOR = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")
FEATURES = ("flags", "Features")


@dataclass(frozen=True)
class CostCurve:
    """Seconds of one forward by rows, ascending in both; between the points and beyond them it is linear.

    clock: tells seconds, by the clock that the curve was measured with; None: the curve is of no machine, and rounds are not
    measured either.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    clock: Callable[[], float] | None = field(default=None, compare=False, repr=False)

    def __call__(self, rows: float) -> float:
        """Seconds that a forward of `rows` rows takes."""
        if len(self.rows) == 1:
            return self.seconds[0]
        place = min(max(bisect.bisect_left(self.rows, rows), 1), len(self.rows) - 1)
        x0, x1 = self.rows[place - 1], self.rows[place]
        y0, y1 = self.seconds[place - 1], self.seconds[place]
        return max(y0 + (y1 - y0) * (rows - x0) / (x1 - x0), self.seconds[0] * 1e-3)

    def at(self, context: int) -> CostCurve:
        """The curve after `context` cached tokens; of a curve that knows only one context, itself."""
        return self

    @classmethod
    def flat(cls, seconds: float = 1.0) -> CostCurve:
        """Every forward costs the same: the idealised accelerator, for tests and for scorers without a machine."""
        return cls((1,), (seconds,))


@dataclass(frozen=True)
class ContextCosts(CostCurve):
    """Curves after several numbers of cached tokens. As a curve it is the one after the usual context.

    contexts: ascending. curves: one for each, with the same rows; more context never costs less.
    """

    contexts: tuple[int, ...] = ()
    curves: tuple[CostCurve, ...] = ()
    _made: dict[int, CostCurve] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, curves: Mapping[int, CostCurve]) -> ContextCosts:
        """Curves by context. Where noise made more context look cheaper, less costs what more did: noise only adds."""
        contexts = tuple(sorted(curves))
        rows = curves[contexts[0]].rows
        if any(curve.rows != rows for curve in curves.values()):
            raise ValueError("the curves of several contexts need the same rows")
        lowest: list[tuple[float, ...]] = []
        for context in reversed(contexts):
            seconds = curves[context].seconds
            lowest.insert(0, tuple(map(min, seconds, lowest[0])) if lowest else seconds)
        usual = max((place for place, context in enumerate(contexts) if context <= USUAL_CONTEXT), default=0)
        made = tuple(CostCurve(rows, seconds) for seconds in lowest)
        return cls(rows, lowest[usual], contexts=contexts, curves=made)

    def at(self, context: int) -> CostCurve:
        """The curve after `context` cached tokens: between the measured contexts and beyond them it is linear, below the
        first it is the first."""
        context = max(-(-context // CONTEXT_STEP) * CONTEXT_STEP, self.contexts[0])
        if len(self.contexts) == 1:
            return self.curves[0]
        if context not in self._made:
            place = min(max(bisect.bisect_left(self.contexts, context), 1), len(self.contexts) - 1)
            before, after = self.contexts[place - 1], self.contexts[place]
            share = (context - before) / (after - before)
            pairs = zip(self.curves[place - 1].seconds, self.curves[place].seconds, strict=True)
            # Rows far apart may have been measured in unlike minutes, so that lines beyond the last context could cross.
            seconds: list[float] = []
            for low, high in pairs:
                seconds.append(max(low + (high - low) * share, seconds[-1] if seconds else 0.0))
            self._made[context] = CostCurve(self.rows, tuple(seconds))
        return self._made[context]

    @classmethod
    def read(cls, path: Path) -> ContextCosts:
        """Curves kept in a file. Raises OSError, ValueError, KeyError or TypeError where it holds none."""
        known = json.loads(path.read_text())
        rows, table = tuple(map(int, known["rows"])), known["seconds"]
        curves = {int(context): CostCurve(rows, tuple(map(float, seconds))) for context, seconds in table.items()}
        if not rows or not curves or list(rows) != sorted(set(rows)):
            raise ValueError(f"{path} holds no cost curves")
        for curve in curves.values():
            if len(curve.seconds) != len(rows) or not all(s > 0 for s in curve.seconds):
                raise ValueError(f"{path} holds no cost curves")
        return cls.of(curves)

    def write(self, path: Path, described: Mapping[str, str]) -> None:
        """Keep the curves in a file, whole or not at all. described: what they were measured of. Raises OSError."""
        table = {str(context): curve.seconds for context, curve in zip(self.contexts, self.curves, strict=True)}
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps({"of": dict(described), "rows": self.rows, "seconds": table}, indent=1))
        os.replace(draft, path)


def measure(network: Scorer) -> ContextCosts:
    """Time forwards of `network` after contexts of several lengths, within MOST_SECONDS or little more."""
    room = network.context // 2
    contexts = [context for context in CALIBRATION_CONTEXTS if context <= room] or [room]
    most = min(network.measured_rows, network.context - contexts[-1])
    sizes = tuple(rows for rows in CALIBRATION_ROWS if rows <= most)
    curves: dict[int, CostCurve] = {}
    begun = time.perf_counter()
    for place, context in enumerate(contexts, start=1):
        until = begun + MOST_SECONDS * place / len(contexts)
        if curves and time.perf_counter() + curves[min(curves)](context) > until:
            break  # to read so long a text would take all the time that there is
        curves[context] = _measure(network, context, sizes, until, shorten=not curves)
        sizes = curves[context].rows
    return ContextCosts.of(curves)


def _measure(network: Scorer, context: int, sizes: tuple[int, ...], until: float, shorten: bool) -> CostCurve:
    """shorten: leave out sizes that take longer than LONGEST_SECONDS. No further round begins after `until`, by the clock."""
    from decodery.models.forward import Forward, Rows

    sequence = network.new_sequence()
    filler = [i % min(1000, network.vocabulary) for i in range(max(context, sizes[-1]))]
    network.run([Forward(sequence, filler[:context], logits=Rows.NONE)])

    def timed(rows: int) -> float:
        start = time.perf_counter()
        # Of a long prompt only the last row needs scores.
        network.run([Forward(sequence, filler[:rows], logits=Rows.ALL if rows <= 64 else Rows.LAST)])
        elapsed = time.perf_counter() - start
        sequence.truncate(context)
        return elapsed

    for place, rows in enumerate(sizes, start=1):  # the first round warms up
        if timed(rows) > LONGEST_SECONDS and shorten:
            sizes = sizes[: max(place, 2)]
            break
    best = {rows: timed(rows) for rows in sizes}
    for _ in range(REPEATS - 1):
        if time.perf_counter() > until:
            break
        for rows in sizes:
            if best[rows] <= DEAR_SECONDS:
                best[rows] = min(best[rows], timed(rows))
    # More rows never cost less, and noise only adds: so many rows cost no more than was measured of any larger number.
    seconds = tuple(accumulate((best[rows] for rows in reversed(sizes)), min))
    return CostCurve(sizes, seconds[::-1])


def machine(cpuinfo: Path = CPUINFO) -> dict[str, str]:
    """What tells machines apart on which a forward costs something else: processor, its features, and the cores that this
    process may use. Two machines that share a home must not take each other's curves."""
    told = processors(cpuinfo)

    def said(names: tuple[str, ...]) -> str:
        """Of all processors, since not all cores of a machine are alike."""
        return ", ".join(value for name in names for value in sorted(told.get(name, ())) if value)

    # The number of cores that are there is not asked: on a shared machine some may be denied to this process.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "architecture": platform.machine(),
        "processor": said(PROCESSOR) or said(ARM_PROCESSOR) or platform.processor() or platform.platform(),
        "features": said(FEATURES),
        "compiled for": chosen_set(),
        "cores": str(cores),
    }


def calibrated(network: Scorer, identity: Mapping[str, str], folder: Path) -> ContextCosts:
    """The curves of `network`, from `folder` where they were measured before under the same identity, version and machine.

    identity: everything that changes what a forward costs, such as model, dtype, path and threads.
    """
    import torch

    described = {
        **identity,
        **machine(),
        "torch": torch.__version__,
        "decodery": __version__,
        "rows": str(CALIBRATION_ROWS),
        "contexts": str(CALIBRATION_CONTEXTS),
    }
    text = json.dumps(described, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    try:
        curves = ContextCosts.read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not measured yet, or unreadable
        curves = measure(network)
        with contextlib.suppress(
            OSError
        ):  # a home that cannot be written costs a measurement per process, nothing else
            curves.write(path, described)
    return replace(curves, clock=time.perf_counter)
