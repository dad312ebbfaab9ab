"""What the suite reports: rows, tables, files and curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from decodery.errors import BadInput
from decodery.evaluation.parallelbench.oracle import OraclePoint, oracle_table

OVERALL = "all tasks"
ORACLE = "oracle threshold"
"""Series of the best threshold of each sample: what no fixed threshold can reach."""


@dataclass(frozen=True)
class SuiteRow:
    """An entrant on a task, over its samples. Accuracy is the mean of the task's own metric, a share where answers are right or
    wrong, and None where that needs a judge that is not installed; tokens_per_forward counts filled positions of the canvas,
    content_per_forward those of answers with their end token; forwards and token_forwards are means of a sample (a token
    forward is one position computed once); speed_up is of seconds against the first entrant in the same run. edit_bits: of
    tasks that edit a list anywhere, the entropy of the place in right answers; most_edit_bits: what it is where all places are
    as likely. metrics: means of the task's other metrics."""

    series: str
    setting: str
    spec: str
    task: str
    samples: int
    accuracy: float | None
    tokens_per_forward: float
    content_per_forward: float
    forwards: float
    token_forwards: float
    tokens_per_second: float
    speed_up: float
    edit_bits: float | None = None
    most_edit_bits: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class SuiteReport:
    """rows: every entrant on every task and on all. told: what it ran on. notes: where the samples came from, what was left
    out, and why. oracle: what the decoders reach with a model that makes no mistakes, where that was asked for."""

    rows: list[SuiteRow]
    told: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    oracle: list[OraclePoint] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "oracle": [asdict(point) for point in self.oracle],
            "provenance": self.told,
            "notes": self.notes,
        }

    def write_json(self, path: Path) -> None:
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", "utf-8")

    def write_csv(self, path: Path) -> None:
        """Write the rows, with a column for each of their metrics."""
        import csv

        lines = [{**asdict(row), **row.metrics} for row in self.rows]
        columns = [name for name in dict.fromkeys(name for line in lines for name in line) if name != "metrics"]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(lines)

    def table(self) -> list[list[str]]:
        """The header, then a line per entrant and task: tasks one under another, the mean of all last."""
        lines = [
            ["task", "decoder", "setting", "accuracy", "tok/fwd", "answer/fwd", "forwards", "tok-fwds", "tok/s", "x"]
        ]
        for row in self.in_order():
            lines.append(
                [
                    row.task,
                    row.series,
                    row.setting,
                    "not measured" if row.accuracy is None else f"{row.accuracy:.1%}",
                    f"{row.tokens_per_forward:.2f}",
                    f"{row.content_per_forward:.2f}",
                    f"{row.forwards:.1f}",
                    f"{row.token_forwards:.0f}",
                    f"{row.tokens_per_second:.0f}" if row.speed_up else "–",
                    f"{row.speed_up:.2f}" if row.speed_up else "–",
                ]
            )
        return lines

    def in_order(self) -> list[SuiteRow]:
        """The rows, tasks one under another, the mean of all last."""
        tasks = list(dict.fromkeys(row.task for row in self.rows))
        return sorted(self.rows, key=lambda row: (row.task == OVERALL, tasks.index(row.task)))

    def metrics_table(self) -> list[list[str]]:
        """The header, then a line per metric besides accuracy, and per entropy of edited places; the header alone where there
        are none."""
        lines = [["task", "decoder", "setting", "metric", "mean"]]
        for row in self.in_order():
            head = [row.task, row.series, row.setting]
            lines += [[*head, name, f"{value:.1%}"] for name, value in row.metrics.items()]
            if row.edit_bits is not None:
                lines.append([*head, "edited places, bits", f"{row.edit_bits:.2f} of {row.most_edit_bits:.2f}"])
        return lines

    def oracle_table(self) -> list[list[str]]:
        """The oracle curve, see `oracle.oracle_curve`: the header, then a line per point."""
        return oracle_table(self.oracle)


def draw_curves(report: SuiteReport, path: Path) -> None:
    """Draw the trade-off curves, one panel a task, to an image file. Raises BadInput where matplotlib is missing or does not
    know the file's kind."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput('plots need matplotlib; install it with: pip install "decodery[bench]"') from None
    panels = list(dict.fromkeys(row.task for row in sorted(report.rows, key=lambda row: row.task == OVERALL)))
    series = list(dict.fromkeys(row.series for row in report.rows))
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * lines + 0.8), layout="constrained", dpi=120)
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for axis, task in zip(axes, panels, strict=False):
        for place, name in enumerate(series):
            points = sorted(
                (row.tokens_per_forward, 100 * row.accuracy)
                for row in report.rows
                if row.task == task and row.series == name and row.accuracy is not None
            )
            if not points:
                continue
            marker = "*" if name == ORACLE else "o^sDvPX<>hd"[place // 10 % 11]
            axis.plot(*zip(*points, strict=True), marker=marker, markersize=4, color=f"C{place % 10}", label=name)
        axis.set_title(task, fontsize=9)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_ylim(-4, 104)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
    for axis in list(figure.axes)[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel("tokens per forward", fontsize=9)
    figure.supylabel("accuracy, %", fontsize=9)
    shown = {
        label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    labels, handles = list(shown), list(shown.values())
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), fontsize=7)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise BadInput(f"{path} cannot be drawn: {error}") from None
