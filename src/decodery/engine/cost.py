"""What a forward costs on this machine: seconds by number of rows, measured once and kept.

On a GPU scoring sixteen rows costs what one row costs; on a CPU it does not. Draft sizes are therefore chosen on the
measured curve of this network on this machine, not on a constant.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decodery.models.network import Scorer

CALIBRATION_ROWS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64)
CALIBRATION_CONTEXT = 256
REPEATS = 5


@dataclass(frozen=True)
class CostCurve:
    """Seconds of one forward by rows, ascending in both; between the points and beyond them it is linear."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, rows: float) -> float:
        """Seconds that a forward of `rows` rows takes."""
        if len(self.rows) == 1:
            return self.seconds[0]
        place = min(max(bisect.bisect_left(self.rows, rows), 1), len(self.rows) - 1)
        x0, x1 = self.rows[place - 1], self.rows[place]
        y0, y1 = self.seconds[place - 1], self.seconds[place]
        return max(y0 + (y1 - y0) * (rows - x0) / (x1 - x0), self.seconds[0] * 1e-3)

    @classmethod
    def flat(cls, seconds: float = 1.0) -> CostCurve:
        """Every forward costs the same: the idealised accelerator, for tests and for scorers without a machine."""
        return cls((1,), (seconds,))

    @classmethod
    def read(cls, path: Path) -> CostCurve:
        """A curve kept in a file. Raises OSError, ValueError, KeyError or TypeError where it is not one."""
        known = json.loads(path.read_text())
        rows, seconds = tuple(map(int, known["rows"])), tuple(map(float, known["seconds"]))
        if not rows or len(rows) != len(seconds) or list(rows) != sorted(set(rows)) or not all(s > 0 for s in seconds):
            raise ValueError(f"{path} holds no cost curve")
        return cls(rows, seconds)


def measure(network: Scorer) -> CostCurve:
    """Time forwards of `network` after a context of some hundred tokens. Takes a few seconds."""
    from decodery.models.forward import Forward, Rows

    context = min(CALIBRATION_CONTEXT, network.context // 2)
    sequence = network.new_sequence()
    filler = [i % min(1000, network.vocabulary) for i in range(context)]
    network.run([Forward(sequence, filler, logits=Rows.NONE)])
    sizes = [rows for rows in CALIBRATION_ROWS if context + rows <= network.context]
    best: dict[int, float] = {}
    for repeat in range(REPEATS + 1):
        for rows in sizes:
            start = time.perf_counter()
            network.run([Forward(sequence, filler[:rows])])
            elapsed = time.perf_counter() - start
            sequence.truncate(context)
            if repeat:  # the first round warms up
                best[rows] = min(best.get(rows, elapsed), elapsed)
    seconds: list[float] = []
    for rows in sizes:  # noise must not make more rows look cheaper
        seconds.append(max(best[rows], seconds[-1] if seconds else 0.0))
    return CostCurve(tuple(sizes), tuple(seconds))


def calibrated(network: Scorer, identity: Mapping[str, str], folder: Path) -> CostCurve:
    """The curve of `network`, from `folder` where it was measured before under the same identity and machine."""
    import torch

    described = {
        **identity,
        "machine": f"{platform.machine()} {platform.processor()} {os.cpu_count()}",
        "torch": torch.__version__,
        "rows": str(CALIBRATION_ROWS),
    }
    text = json.dumps(described, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    try:
        return CostCurve.read(path)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or unreadable: measure
    curve = measure(network)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):  # a home that cannot be written costs a measurement per process, nothing else
        folder.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"of": described, "rows": curve.rows, "seconds": curve.seconds}, indent=1))
        os.replace(draft, path)
    return curve
