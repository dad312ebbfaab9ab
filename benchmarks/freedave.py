"""FreeDave against its static decoders: accuracy, forwards, token forwards and identical canvases, per task.

    python benchmarks/freedave.py --model diffusion-lists --json study.json

Sections: steps (draft steps from 1 to 16), caches (regimes, layouts, tokens per step and eager drafts at 4 draft steps),
threshold (FreeDave++ beside the threshold rule), sampling (a fixed table of noise), bfloat16 (how often rounding changes a
canvas, in a batch, as a tree, and forwarded one by one). Each row stands beside its static decoder; counts are means of a
sample, times are ratios of this run. The model is a name or a folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import decodery
from decodery.diffusion.freedave import FreeDave
from decodery.engine.registry import method as as_method
from decodery.evaluation.parallelbench.tasks import TASKS, Sample, make_samples, score
from decodery.language_model import LanguageModel
from decodery.replies import Reply

ALL = "all tasks"
SECTIONS = ("steps", "caches", "threshold", "sampling", "bfloat16")
LIST_TASKS = [name for name, task in TASKS.items() if task.group == "lists"]


@dataclass(frozen=True)
class Row:
    """A method on the samples of a task. accuracy: share of right answers. forwards, token_forwards, static_forwards,
    static_token_forwards: means of a sample, of the method and of its static decoder. per_forward: filled positions per
    forward. identical: share of canvases that are the static decoder's, with the step that filled each position. never_more:
    whether no sample took more forwards than there. speed_up: seconds of the static decoder over those of the method."""

    section: str
    spec: str
    task: str
    samples: int
    accuracy: float
    static_accuracy: float
    forwards: float
    static_forwards: float
    token_forwards: float
    static_token_forwards: float
    per_forward: float
    identical: float
    never_more: bool
    speed_up: float


@dataclass(frozen=True)
class Outcome:
    """One sample decoded both ways."""

    task: str
    right: tuple[bool, bool]
    forwards: tuple[int, int]
    rows: tuple[int, int]
    filled: int
    identical: bool
    seconds: tuple[float, float]


def specs(section: str, block: int) -> list[str]:
    """The methods of a section."""
    base = f"block_length={block}"
    if section == "steps":
        return [f"freedave({base}, draft_steps={steps})" for steps in (1, 2, 4, 8, 16)]
    if section == "caches":
        found = [
            f"freedave({base}, cache={cache}, layout={layout}, tokens_per_step={count})"
            for cache in ("none", "prefix", "dual")
            for layout in ("batch", "tree")
            for count in (1, 2)
        ]
        return [*found, f"freedave({base}, eager=True)", f"freedave({base}, eager=True, draft_steps=8)"]
    if section == "threshold":
        return [
            f"{name}({base}, rule=threshold, threshold={threshold})"
            for threshold in (0.8, 0.95)
            for name in ("freedave", "freedave-plus-plus")
        ]
    if section == "sampling":
        return [f"freedave({base}, value_independent=True, rank={rank})" for rank in ("entropy", "margin")]
    return [f"freedave({base}, layout={layout})" for layout in ("batch", "tree", "single")]


class Study:
    """Decodes samples with methods and with their static decoders, which are run once each."""

    def __init__(self, lm: LanguageModel, samples: Sequence[Sample], canvas: int):
        self.lm, self.samples, self.canvas = lm, samples, canvas
        self.prompts = [lm.tokenize(sample.prompt) for sample in samples]
        self._static: dict[tuple[str, float], list[tuple[Reply, float]]] = {}

    def rows(self, section: str, spec: str, temperature: float) -> Iterator[Row]:
        """A method on every task, and on all."""
        method = as_method(spec)
        assert isinstance(method, FreeDave)
        static = method.static().spec()
        if (static, temperature) not in self._static:
            self._static[static, temperature] = self._decoded(static, temperature)
        outcomes = [
            Outcome(
                sample.task,
                (score(sample, reply.text.strip()), score(sample, plain.text.strip())),
                (reply.stats.forwards, plain.stats.forwards),
                (reply.stats.rows, plain.stats.rows),
                sum(step >= 0 for step in reply.stats.step_of),
                reply.token_ids == plain.token_ids and reply.stats.step_of == plain.stats.step_of,
                (seconds, plain_seconds),
            )
            for sample, (reply, seconds), (plain, plain_seconds) in zip(
                self.samples, self._decoded(spec, temperature), self._static[static, temperature], strict=True
            )
        ]
        for task in [*dict.fromkeys(sample.task for sample in self.samples), ALL]:
            yield _row(section, spec, task, [o for o in outcomes if task in (o.task, ALL)])

    def _decoded(self, spec: str, temperature: float) -> list[tuple[Reply, float]]:
        found = []
        for place, prompt in enumerate(self.prompts):
            start = time.perf_counter()
            reply = self.lm.generate(prompt, spec, temperature=temperature, seed=place, max_new_tokens=self.canvas)
            found.append((reply, time.perf_counter() - start))
        return found


def _row(section: str, spec: str, task: str, outcomes: Sequence[Outcome]) -> Row:
    def mean(values: Callable[[Outcome], Any]) -> float:
        return sum(float(values(outcome)) for outcome in outcomes) / len(outcomes)

    return Row(
        section,
        spec,
        task,
        len(outcomes),
        mean(lambda o: o.right[0]),
        mean(lambda o: o.right[1]),
        mean(lambda o: o.forwards[0]),
        mean(lambda o: o.forwards[1]),
        mean(lambda o: o.rows[0]),
        mean(lambda o: o.rows[1]),
        sum(o.filled for o in outcomes) / sum(o.forwards[0] for o in outcomes),
        mean(lambda o: o.identical),
        all(o.forwards[0] <= o.forwards[1] for o in outcomes),
        sum(o.seconds[1] for o in outcomes) / sum(o.seconds[0] for o in outcomes),
    )


def table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    shown = Table(
        "method", "task", "right (static)", "forwards (static)", "token forwards", "per forward", "identical", "time"
    )
    for row in rows:
        shown.add_row(
            row.spec,
            row.task,
            f"{row.accuracy:.0%} ({row.static_accuracy:.0%})",
            f"{row.forwards:.2f} ({row.static_forwards:.2f}){'' if row.never_more else ' !'}",
            f"{row.token_forwards:.0f} ({row.static_token_forwards:.0f})",
            f"{row.per_forward:.2f}",
            f"{row.identical:.1%}",
            f"{row.speed_up:.2f}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="diffusion-lists")
    parser.add_argument("--tasks", nargs="+", default=LIST_TASKS, choices=list(TASKS))
    parser.add_argument("--samples", type=int, default=20, help="per task")
    parser.add_argument("--lengths", type=int, nargs="+", help="of the lists; by default each task's own")
    parser.add_argument("--canvas", type=int, default=16)
    parser.add_argument("--block", type=int, default=8)
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=170)
    samples = [sample for task in given.tasks for sample in make_samples(task, given.samples, lengths=given.lengths)]
    rows: list[Row] = []
    for section in given.sections:
        lm = decodery.load(given.model, dtype="bfloat16" if section == "bfloat16" else "float32")
        study = Study(lm, samples, given.canvas)
        found = []
        for spec in specs(section, given.block):
            found += study.rows(section, spec, 1.0 if section == "sampling" else 0.0)
        details = section in ("steps", "threshold")
        console.print(f"[bold]{section}[/bold]")
        console.print(table([row for row in found if details or row.task == ALL]))
        rows += found
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
