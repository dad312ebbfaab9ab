"""The suite: every decoder of canvases on the same samples, accuracy against tokens per forward.

An entrant is a method at one setting; entrants of one series form a trade-off curve. What is measured comes from the replies
alone, so a method of another package takes part like our own.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from decodery.engine import registry
from decodery.errors import BadInput, BadSetting
from decodery.evaluation.parallelbench.tasks import TASKS, Sample, make_samples, score
from decodery.evaluation.provenance import provenance
from decodery.language_model import LanguageModel
from decodery.models.kinds import Kind

Progress = Callable[[str, int, int], None]
SHORT, LONG = 16, 32
"""Canvases of lists and text, and of the tasks with answers of several lines."""
OVERALL = "all tasks"
ORACLE = "oracle threshold"
"""Series of the best threshold of each sample: what no fixed threshold can reach."""
REFERENCE_SERIES = "low_confidence, tokens per step"


@dataclass(frozen=True)
class Entrant:
    """series: the curve it belongs to. setting: where on the curve. spec: of the method; "{canvas}" stands for the canvas and
    "{steps}" for the canvas divided by `per_step`, rounded up. threshold: of a fixed-threshold decoder, for the oracle.
    """

    series: str
    setting: str
    spec: str
    per_step: int = 1
    threshold: float | None = None

    def on(self, canvas: int) -> str:
        """The spec for a canvas."""
        return self.spec.replace("{steps}", str(-(-canvas // self.per_step))).replace("{canvas}", str(canvas))


def quotas(series: str, spec: str, counts: Sequence[int] = (1, 2, 4, 8)) -> list[Entrant]:
    """A curve over tokens per step. spec: with "{steps}" in it."""
    return [Entrant(series, str(count), spec, per_step=count) for count in counts]


def default_entrants(full: bool = False) -> list[Entrant]:
    """The base decoder over tokens per step, threshold and factor, then every other diffusion method that needs no second
    model, at its defaults. The first one fills one token per step: speed-ups are relative to it.

    full: the published grid, with every order rule and block lengths of 4 and 8 besides.
    """
    base = "masked-diffusion"
    found = quotas(REFERENCE_SERIES, f"{base}(steps={{steps}})")
    thresholds = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0) if full else (0.5, 0.7, 0.9)
    found += [Entrant("threshold", f"{t:g}", f"{base}(rule=threshold, threshold={t})", threshold=t) for t in thresholds]
    factors = (0.7, 1.0, 1.3, 1.6, 1.9) if full else (0.7, 1.0, 1.6)
    found += [Entrant("factor", f"{f:g}", f"{base}(rule=factor, factor={f})") for f in factors]
    if full:
        for rule in ("random", "topk_margin", "entropy"):
            found += quotas(f"{rule}, tokens per step", f"{base}(rule={rule}, steps={{steps}})")
        for block in (4, 8):
            found += quotas(
                f"blocks of {block}, tokens per step", f"{base}(block_length={block}, steps={{steps}})", (1, 2, 4)
            )
    for info in registry.methods():
        if info.suits(Kind.MASKED_POSITIONS) and info.name != base and not info.extras:
            found.append(Entrant(info.name, "default", info.name))
    return found


def given_entrants(specs: Sequence[str]) -> list[Entrant]:
    """One entrant per spec, behind one token per step. Specs of one method form a curve."""
    first = quotas(REFERENCE_SERIES, "masked-diffusion(steps={steps})", (1,))
    # "{steps}" and "{canvas}" are filled in later; any number shows whether the rest is well-formed.
    names = [registry.method(Entrant("", "", spec).on(LONG)).name for spec in specs]
    return first + [Entrant(name, spec, spec) for name, spec in zip(names, specs, strict=True)]


@dataclass(frozen=True)
class Outcome:
    """One sample decoded. content: tokens of the answer with its end token; positions: filled ones of the canvas.
    computed: rows of all networks, prompt included. forwards: of all networks."""

    right: bool
    text: str
    content: int
    positions: int
    forwards: int
    computed: int


@dataclass(frozen=True)
class Row:
    """An entrant on a task, over its samples. Accuracy is a share; tokens_per_forward counts filled positions of the canvas,
    content_per_forward those of answers with their end token; forwards and token_forwards are means of a sample (a token
    forward is one position computed once); speed_up is of seconds against the first entrant in the same run."""

    series: str
    setting: str
    spec: str
    task: str
    samples: int
    accuracy: float
    tokens_per_forward: float
    content_per_forward: float
    forwards: float
    token_forwards: float
    tokens_per_second: float
    speed_up: float


@dataclass
class SuiteReport:
    """rows: every entrant on every task and on all. told: what it ran on. notes: what was left out, and why."""

    rows: list[Row]
    told: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"rows": [asdict(row) for row in self.rows], "provenance": self.told, "notes": self.notes}

    def write_json(self, path: Path) -> None:
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", "utf-8")

    def write_csv(self, path: Path) -> None:
        import csv

        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(asdict(self.rows[0])))
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)

    def table(self) -> list[list[str]]:
        """The header, then a line per entrant and task: tasks one under another, the mean of all last."""
        lines = [
            ["task", "decoder", "setting", "accuracy", "tok/fwd", "answer/fwd", "forwards", "tok-fwds", "tok/s", "x"]
        ]
        tasks = list(dict.fromkeys(row.task for row in self.rows))
        for row in sorted(self.rows, key=lambda row: (row.task == OVERALL, tasks.index(row.task))):
            lines.append(
                [
                    row.task,
                    row.series,
                    row.setting,
                    f"{row.accuracy:.1%}",
                    f"{row.tokens_per_forward:.2f}",
                    f"{row.content_per_forward:.2f}",
                    f"{row.forwards:.1f}",
                    f"{row.token_forwards:.0f}",
                    f"{row.tokens_per_second:.0f}" if row.speed_up else "–",
                    f"{row.speed_up:.2f}" if row.speed_up else "–",
                ]
            )
        return lines


def run_suite(
    lm: LanguageModel,
    entrants: Sequence[Entrant],
    tasks: Sequence[str] = tuple(TASKS),
    *,
    samples: int = 100,
    batch_size: int = 25,
    canvas: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    on_progress: Progress | None = None,
) -> SuiteReport:
    """Decode the same samples with every entrant.

    samples: of each task. batch_size: decoded together. canvas: None gives the tasks with answers of several lines 32
    positions and the others 16. seed: of samples and draws; None is each task's own. Raises BadSetting for an unknown task, for
    numbers below 1, and for a model without a mask; and what `generate` raises.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise BadSetting(f"{unknown[0]!r} is no task of the suite; known: {', '.join(TASKS)}.")
    if samples < 1 or batch_size < 1 or not entrants or not tasks:
        raise BadSetting("the suite needs at least one sample, one request at a time, one task and one entrant.")
    if Kind.MASKED_POSITIONS not in lm.network.kinds:
        raise BadSetting(f"{lm.name} is no masked-diffusion model; the suite measures decoders of canvases.")
    tell = on_progress or (lambda label, done, total: None)
    outcomes: dict[tuple[int, str], list[Outcome]] = {}
    seconds: dict[tuple[int, str], float] = {}
    total, done = len(entrants) * len(tasks), 0
    for task in tasks:
        drawn = make_samples(task, samples, seed=seed)
        length = canvas or (LONG if "\n" in drawn[0].answer else SHORT)
        for place, entrant in enumerate(entrants):
            tell("parallelbench", done, total)
            started = time.perf_counter()
            outcomes[place, task] = decode_samples(lm, entrant.on(length), drawn, length, batch_size, temperature, seed)
            seconds[place, task] = time.perf_counter() - started
            done += 1
    tell("parallelbench", total, total)
    rows = []
    for place, entrant in enumerate(entrants):
        for group, members in [*((task, [task]) for task in tasks), (OVERALL, list(tasks))]:
            own = [outcome for task in members for outcome in outcomes[place, task]]
            spent, reference = (sum(seconds[i, task] for task in members) for i in (place, 0))
            rows.append(_row(entrant, group, own, spent, reference))
    rows += _oracle(entrants, tasks, outcomes)
    told = {
        **provenance(lm),
        "samples": samples,
        "tasks": list(tasks),
        "canvas": canvas or f"{SHORT}, answers of several lines {LONG}",
        "batch_size": batch_size,
        "temperature": temperature,
        "seed": seed,
    }
    return SuiteReport(rows, told, list(NOT_MEASURED))


NOT_MEASURED = (
    "summarization, paraphrasing of open text and words-to-sentence by LanguageTool: not measured (they need Java, reference "
    "models and a model of open text); words_to_sentence and paraphrase here are judged by a small grammar of our own.",
)


def decode_samples(
    lm: LanguageModel,
    spec: str,
    samples: Sequence[Sample],
    canvas: int,
    batch_size: int,
    temperature: float,
    seed: int | None,
) -> list[Outcome]:
    """Decode and judge samples. Raises the error of a request that failed."""
    found: list[Outcome] = []
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        replies = lm.generate(
            [sample.prompt for sample in part],
            method=spec,
            seed=[(seed or 0) + start + place for place in range(len(part))],
            max_new_tokens=canvas,
            temperature=temperature,
        )
        for sample, reply in zip(part, replies, strict=True):
            if reply.error is not None:
                raise reply.error
            stats = reply.stats
            filled = sum(step >= 0 for step in stats.step_of)
            found.append(
                Outcome(
                    score(sample, reply.text),
                    reply.text,
                    len(reply.token_ids),
                    filled or len(reply.token_ids),
                    sum(model.forwards for model in stats.models.values()),
                    sum(model.rows for model in stats.models.values()),
                )
            )
    return found


def _row(entrant: Entrant, task: str, outcomes: Sequence[Outcome], seconds: float, reference: float) -> Row:
    count = len(outcomes)
    forwards = sum(outcome.forwards for outcome in outcomes)
    return Row(
        entrant.series,
        entrant.setting,
        entrant.spec,
        task,
        count,
        sum(outcome.right for outcome in outcomes) / count,
        sum(outcome.positions for outcome in outcomes) / forwards,
        sum(outcome.content for outcome in outcomes) / forwards,
        forwards / count,
        sum(outcome.computed for outcome in outcomes) / count,
        sum(outcome.content for outcome in outcomes) / seconds if seconds else 0.0,
        reference / seconds if seconds else 0.0,
    )


def _oracle(
    entrants: Sequence[Entrant], tasks: Sequence[str], outcomes: dict[tuple[int, str], list[Outcome]]
) -> list[Row]:
    """For each sample the loosest threshold that still gives a right answer, the strictest where none does."""
    strict_first = sorted(
        (place for place, entrant in enumerate(entrants) if entrant.threshold is not None),
        key=lambda place: -(entrants[place].threshold or 0.0),
    )
    if len(strict_first) < 2:
        return []
    chosen: defaultdict[str, list[Outcome]] = defaultdict(list)
    for task in tasks:
        for tried in zip(*(outcomes[place, task] for place in strict_first), strict=True):
            right = [outcome for outcome in tried if outcome.right]
            chosen[task].append(right[-1] if right else tried[0])
    whole = [outcome for task in tasks for outcome in chosen[task]]
    entrant = Entrant(ORACLE, "per sample", "")
    return [_row(entrant, group, own, 0.0, 0.0) for group, own in [*chosen.items(), (OVERALL, whole)]]


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
                if row.task == task and row.series == name
            )
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
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), fontsize=7)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise BadInput(f"{path} cannot be drawn: {error}") from None
