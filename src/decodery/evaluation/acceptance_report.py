"""The result of `decodery acceptance`: a table, JSON, a plot."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decodery.errors import BadInput


@dataclass(frozen=True)
class AcceptanceRow:
    """One verifier on one way of drawing so many drafts. Each number is a mean over the logged rows, `_error` its standard
    error, the rows taken as independent.

    accepted: share of rounds in which the verifier, run on drawn drafts, accepted one. expected: the same, computed.
    optimum: what no verifier can exceed. gap: optimum less expected, row by row.
    """

    temperature: float
    drafts: int
    drawn: str
    verifier: str
    accepted: float
    accepted_error: float
    expected: float
    expected_error: float
    optimum: float
    optimum_error: float
    gap: float
    gap_error: float

    @classmethod
    def of(
        cls,
        temperature: float,
        drafts: int,
        drawn: str,
        verifier: str,
        *,
        accepted: NDArray[np.float64],
        expected: NDArray[np.float64],
        optimum: NDArray[np.float64],
    ) -> AcceptanceRow:
        columns = (accepted, expected, optimum, optimum - expected)
        numbers = [number for column in columns for number in (float(column.mean()), standard_error(column))]
        return cls(temperature, drafts, drawn, verifier, *numbers)


def standard_error(column: NDArray[np.float64]) -> float:
    """Of the mean of independent numbers [n], n > 1."""
    return float(column.std(ddof=1) / len(column) ** 0.5)


@dataclass(frozen=True)
class AcceptanceReport:
    """rows: by temperature, way of drawing, number of drafts, verifier. provenance: model, draft, machine, settings."""

    rows: list[AcceptanceRow]
    provenance: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"provenance": self.provenance, "rows": [asdict(row) for row in self.rows]}

    def row(self, temperature: float, drafts: int, drawn: str, verifier: str) -> AcceptanceRow:
        """The row of a verifier. Raises KeyError where there is none."""
        wanted = (temperature, drafts, drawn, verifier)
        for row in self.rows:
            if (row.temperature, row.drafts, row.drawn, row.verifier) == wanted:
                return row
        raise KeyError(wanted)

    def table(self) -> list[tuple[str, ...]]:
        """For people: a header, then one line per row."""
        lines: list[tuple[str, ...]] = [
            ("temperature", "drawn", "drafts", "verifier", "accepted", "computed", "optimum", "gap")
        ]
        for row in self.rows:
            lines.append(
                (
                    f"{row.temperature:g}",
                    row.drawn,
                    str(row.drafts),
                    row.verifier,
                    _number(row.accepted, row.accepted_error),
                    _number(row.expected, row.expected_error),
                    _number(row.optimum, row.optimum_error),
                    _number(row.gap, row.gap_error),
                )
            )
        return lines

    def plot(self, path: Path) -> None:
        """Acceptance by number of drafts, one panel per temperature; dashed: the optimum of each way of drawing.

        Raises BadInput where the file's name ends in no picture format. Needs matplotlib.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        temperatures = list(dict.fromkeys(row.temperature for row in self.rows))
        figure = Figure(figsize=(5.2 * len(temperatures), 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        ways = list(dict.fromkeys(row.drawn for row in self.rows))
        colours = dict(zip(ways, ("tab:blue", "tab:green", "tab:orange"), strict=False))
        markers = {"recursive-rejection": "o", "k-seq": "s", "greedy-set": "^"}
        panels = figure.subplots(1, len(temperatures), sharey=True, squeeze=False)[0]
        for panel, temperature in zip(panels, temperatures, strict=True):
            chosen = [row for row in self.rows if row.temperature == temperature]
            for drawn in ways:
                optimum = {row.drafts: row.optimum for row in chosen if row.drawn == drawn}
                panel.plot(list(optimum), list(optimum.values()), "--", color=colours[drawn], label=f"optimum, {drawn}")
            for drawn, verifier in dict.fromkeys((row.drawn, row.verifier) for row in chosen):
                some = [row for row in chosen if (row.drawn, row.verifier) == (drawn, verifier)]
                panel.errorbar(
                    [row.drafts for row in some],
                    [row.accepted for row in some],
                    [row.accepted_error for row in some],
                    marker=markers[verifier],
                    linestyle=":",
                    capsize=3,
                    color=colours[drawn],
                    label=f"{verifier}, {drawn}",
                )
            panel.set_xlabel("drafts")
            panel.set_title(f"temperature {temperature:g}")
        panels[0].set_ylabel("acceptance")
        panels[-1].legend(fontsize="small")
        told = self.provenance
        figure.suptitle(f"{told['model']} with draft {told['draft']}, {told['rows']} positions")
        try:
            figure.savefig(path)
        except ValueError as error:
            raise BadInput(f"{path} cannot be drawn: {error}.") from None


def check_plotting(path: Path) -> None:
    """Raise BadInput where no plot can be made, before the work whose result it is to show."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BadInput("--plot needs matplotlib, which is not installed; pip install 'decodery[bench]' brings it.")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known: Sequence[str] = sorted(FigureCanvasAgg.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in known:
        raise BadInput(f"{path} is no picture; its name must end in one of {', '.join(known)}.")


def _number(value: float, error: float) -> str:
    return f"{round(value, 3) + 0.0:.3f} ± {error:.3f}"  # no minus before a zero
