"""What the studies of canvas decoders share: tasks, counting, tables.

A study decodes the same samples with each method and counts: the share of right answers, forwards, tokens per forward. Counts
do not mind a busy machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import decodery
from decodery.engine.method import Method
from decodery.evaluation.parallelbench.tasks import TASKS, Sample, make_samples, score
from decodery.evaluation.provenance import provenance
from decodery.language_model import LanguageModel
from decodery.replies import Reply

FREE = ("shuffle", "insert_random", "remove_random", "replace_random")
"""List tasks whose tokens depend on each other."""
GROUPS = {
    "ordered lists": tuple(name for name, task in TASKS.items() if task.group == "lists" and name not in FREE),
    "free lists": FREE,
    **{
        group: tuple(name for name, task in TASKS.items() if task.group == group)
        for group in ("puzzles", "text", "arithmetic")
    },
}
Tell = Callable[[Sample, Reply], None]


@dataclass(frozen=True)
class Entry:
    """One method on one task. forwards: mean per request."""

    method: str
    task: str
    samples: int
    accuracy: float
    forwards: float


@dataclass(frozen=True)
class Row:
    """One method over tasks: means of the tasks' means."""

    method: str
    entries: tuple[Entry, ...]

    def of(self, tasks: Sequence[str]) -> tuple[float, float]:
        """Accuracy and forwards over these tasks."""
        chosen = [entry for entry in self.entries if entry.task in tasks]
        return statistics.fmean(e.accuracy for e in chosen), statistics.fmean(e.forwards for e in chosen)

    @property
    def accuracy(self) -> float:
        return statistics.fmean(entry.accuracy for entry in self.entries)

    @property
    def forwards(self) -> float:
        return statistics.fmean(entry.forwards for entry in self.entries)


class Study:
    """A model, samples, and the rows so far."""

    def __init__(self, options: argparse.Namespace, tasks: Sequence[str] | None = None):
        self.options = options
        self.lm: LanguageModel = decodery.load(options.model, dtype=options.dtype)
        names = tuple(options.tasks.split(",")) if options.tasks else tuple(tasks or TASKS)
        self.samples = {name: make_samples(name, options.samples, seed=options.seed) for name in names}
        self.canvas = options.canvas or self.lm.diffusion.canvas
        self.rows: list[Row] = []
        self.more: dict[str, Any] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.samples)

    def run(self, method: str | Method, label: str | None = None, tell: Tell | None = None, seed: int = 0) -> Row:
        """Decode all samples greedily. label: the name in the tables. tell: called with every sample and its reply. seed: of
        what a method draws all the same."""
        entries, name = [], label or str(method)
        for task, samples in self.samples.items():
            replies = self.lm.generate(
                [sample.prompt for sample in samples], method, max_new_tokens=self.canvas, temperature=0.0, seed=seed
            )
            for sample, reply in zip(samples, replies, strict=True):
                if tell is not None:
                    tell(sample, reply)
            right = sum(score(sample, reply.text.strip()) for sample, reply in zip(samples, replies, strict=True))
            forwards = statistics.fmean(reply.stats.forwards for reply in replies)
            entries.append(Entry(name, task, len(samples), right / len(samples), forwards))
        self.rows.append(Row(name, tuple(entries)))
        return self.rows[-1]

    def heading(self) -> None:
        """The columns of `line`: accuracy @ forwards, of all tasks and of each group."""
        groups = [group for group, names in GROUPS.items() if set(names) & set(self.tasks)]
        print(f"{'accuracy % @ forwards':56s}" + "".join(f"{group:>16s}" for group in ("all", *groups)))

    def line(self, row: Row, more: str = "") -> None:
        """A row of the table."""
        cells = [(row.accuracy, row.forwards)]
        cells += [row.of(names) for names in GROUPS.values() if set(names) & set(self.tasks)]
        print(f"{row.method:56s}" + "".join(f"{100 * a:9.1f} @{f:5.2f}" for a, f in cells) + more, flush=True)

    def by_task(self, rows: Iterable[Row]) -> None:
        """The same by task, where asked for."""
        if self.options.by_task:
            for row in rows:
                print(f"\n{row.method}")
                for entry in row.entries:
                    print(f"  {entry.task:20s} {100 * entry.accuracy:6.1f} @ {entry.forwards:.2f}")

    def write(self) -> None:
        """The JSON file, where one is wanted."""
        if self.options.json is not None:
            report = {
                "provenance": provenance(self.lm),
                "canvas": self.canvas,
                "rows": [asdict(entry) for row in self.rows for entry in row.entries],
                **self.more,
            }
            self.options.json.write_text(json.dumps(report, indent=1) + "\n")


def accuracy_at(curve: Sequence[Row], forwards: float) -> float:
    """The accuracy of a curve of methods at this many forwards, linear between the two nearest; at its ends, theirs."""
    points = sorted((row.forwards, row.accuracy) for row in curve)
    if forwards <= points[0][0]:
        return points[0][1]
    for (a, low), (b, high) in itertools.pairwise(points):
        if forwards <= b:
            return low if b == a else low + (high - low) * (forwards - a) / (b - a)
    return points[-1][1]


def arguments(description: str) -> argparse.ArgumentParser:
    """The options of all these studies."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="diffusion-lists")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--samples", type=int, default=100, help="per task")
    parser.add_argument("--tasks", help="their names, with commas between (default: all the study is about)")
    parser.add_argument("--canvas", type=int, help="positions (default: the model's)")
    parser.add_argument("--seed", type=int, help="of the samples (default: each task's published one)")
    parser.add_argument("--by-task", action="store_true", help="print every task, too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser
