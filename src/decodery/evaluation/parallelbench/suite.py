"""The suite: every decoder of canvases on the same samples, accuracy against tokens per forward.

An entrant is a method at one setting; entrants of one series form a trade-off curve. What is measured comes from the replies
alone, so a method of another package takes part like our own. The tasks are those of one-token words, or the published ones.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from decodery.engine import registry
from decodery.errors import BadSetting
from decodery.evaluation.parallelbench.analysis import Answer, edited_places
from decodery.evaluation.parallelbench.judging import INSTALL, SCORE
from decodery.evaluation.parallelbench.lists import ListProblem
from decodery.evaluation.parallelbench.oracle import oracle_curve
from decodery.evaluation.parallelbench.questions import (
    LONG,
    MADE,
    SHORT,
    SuiteQuestion,
    TaskQuestions,
    not_made,
    questions_of,
    tasks_to_run,
)
from decodery.evaluation.parallelbench.suite_report import ORACLE as ORACLE
from decodery.evaluation.parallelbench.suite_report import OVERALL as OVERALL
from decodery.evaluation.parallelbench.suite_report import SuiteReport as SuiteReport
from decodery.evaluation.parallelbench.suite_report import SuiteRow as SuiteRow
from decodery.evaluation.parallelbench.suite_report import draw_curves as draw_curves
from decodery.evaluation.parallelbench.tasks import TASKS
from decodery.evaluation.provenance import provenance
from decodery.language_model import LanguageModel
from decodery.models.kinds import Kind

Progress = Callable[[str, int, int], None]
REFERENCE_SERIES = "low_confidence, tokens per step"


@dataclass(frozen=True)
class SuiteEntrant:
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


def quotas(series: str, spec: str, counts: Sequence[int] = (1, 2, 4, 8)) -> list[SuiteEntrant]:
    """A curve over tokens per step. spec: with "{steps}" in it."""
    return [SuiteEntrant(series, str(count), spec, per_step=count) for count in counts]


def default_entrants(full: bool = False) -> list[SuiteEntrant]:
    """The base decoder over tokens per step, threshold and factor, then every other diffusion method that needs no second
    model, at its defaults. The first one fills one token per step: speed-ups are relative to it.

    full: the published grid, with every order rule and block lengths of 4 and 8 besides.
    """
    base = "masked-diffusion"
    found = quotas(REFERENCE_SERIES, f"{base}(steps={{steps}})")
    thresholds = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0) if full else (0.5, 0.7, 0.9)
    found += [
        SuiteEntrant("threshold", f"{t:g}", f"{base}(rule=threshold, threshold={t})", threshold=t) for t in thresholds
    ]
    factors = (0.7, 1.0, 1.3, 1.6, 1.9) if full else (0.7, 1.0, 1.6)
    found += [SuiteEntrant("factor", f"{f:g}", f"{base}(rule=factor, factor={f})") for f in factors]
    if full:
        for rule in ("random", "topk_margin", "entropy"):
            found += quotas(f"{rule}, tokens per step", f"{base}(rule={rule}, steps={{steps}})")
        for block in (4, 8):
            found += quotas(
                f"blocks of {block}, tokens per step", f"{base}(block_length={block}, steps={{steps}})", (1, 2, 4)
            )
    for info in registry.methods():
        if info.suits(Kind.MASKED_POSITIONS) and info.name != base and not info.extras:
            found.append(SuiteEntrant(info.name, "default", info.name))
    return found


def given_entrants(specs: Sequence[str]) -> list[SuiteEntrant]:
    """One entrant per spec, behind one token per step. Specs of one method form a curve."""
    first = quotas(REFERENCE_SERIES, "masked-diffusion(steps={steps})", (1,))
    # "{steps}" and "{canvas}" are filled in later; any number shows whether the rest is well-formed.
    names = [registry.method(SuiteEntrant("", "", spec).on(LONG)).name for spec in specs]
    return first + [SuiteEntrant(name, spec, spec) for name, spec in zip(names, specs, strict=True)]


@dataclass(frozen=True)
class SampleOutcome:
    """One sample decoded. score: of the task's own metric, from 0 to 1, None where its judge is missing; metrics: the others.
    content: tokens of the answer with its end token; positions: filled ones of the canvas. computed: rows of all networks,
    prompt included. forwards: of all networks. edited: the list that was to be edited anywhere, and the items of the answer."""

    score: float | None
    text: str
    content: int
    positions: int
    forwards: int
    computed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    edited: tuple[ListProblem, Answer] | None = None


def run_suite(
    lm: LanguageModel,
    entrants: Sequence[SuiteEntrant],
    tasks: Sequence[str] = (),
    *,
    samples: int = 100,
    batch_size: int = 25,
    canvas: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    published: Path | None = None,
    analysis: bool = False,
    on_progress: Progress | None = None,
) -> SuiteReport:
    """Decode the same samples with every entrant.

    tasks: of one-token words (`tasks.TASKS`) and published ones (`published.PUBLISHED_TASKS`), by name; by default the first,
    or with `published` the second. samples: of each task. batch_size: decoded together. canvas: None gives published tasks the
    published 32 or 64 positions, and the others 16, or 32 where answers have several lines. seed: of samples and draws; None
    is each task's own. published: a folder with the published tasks' files; those that it lacks are made here where that can
    be done, and otherwise left out with a note. Metrics whose judge is not installed are not measured, and a note says what to
    install. analysis: besides, the engine's own rules on an oracle (`oracle.oracle_curve`).

    Raises BadSetting for an unknown task, for numbers below 1, and for a model without a mask; BadInput for files that are none
    and for a named task that cannot be made; BadPrompt where the model's tokenizer has no tokens for a task; and what
    `generate` raises.
    """
    if samples < 1 or batch_size < 1 or not entrants:
        raise BadSetting("the suite needs at least one sample, one request at a time and one entrant.")
    if Kind.MASKED_POSITIONS not in lm.network.kinds:
        raise BadSetting(f"{lm.name} is no masked-diffusion model; the suite measures decoders of canvases.")
    folder = None if published is None else published.expanduser()
    names, left_out = tasks_to_run(tasks, folder)
    asked = [questions_of(task, samples, seed=seed, folder=folder) for task in names]
    for task in asked:
        lm.tokenize(task.questions[0].prompt)  # a tokenizer without the task's words is told before any work
    tell = on_progress or (lambda label, done, total: None)
    outcomes: dict[tuple[int, str], list[SampleOutcome]] = {}
    seconds: dict[tuple[int, str], float] = {}
    total, done = len(entrants) * len(asked), 0
    for task in asked:
        length = canvas or task.canvas
        for place, entrant in enumerate(entrants):
            tell("parallelbench", done, total)
            started = time.perf_counter()
            found = decode_questions(lm, entrant.on(length), task.questions, length, batch_size, temperature, seed)
            outcomes[place, task.task], seconds[place, task.task] = found, time.perf_counter() - started
            done += 1
    tell("parallelbench", total, total)
    rows = []
    for place, entrant in enumerate(entrants):
        for group, members in [*((task, [task]) for task in names), (OVERALL, names)]:
            own = [outcome for task in members for outcome in outcomes[place, task]]
            spent, reference = (sum(seconds[i, task] for task in members) for i in (place, 0))
            rows.append(_row(entrant, group, own, spent, reference))
    rows += _oracle(entrants, names, outcomes)
    told = {
        **provenance(lm),
        "samples": samples,
        "tasks": names,
        "sources": {task.task: task.source for task in asked},
        "canvas": canvas or _canvases(asked),
        "batch_size": batch_size,
        "temperature": temperature,
        "seed": seed,
    }
    points = oracle_curve(seed=seed or 0) if analysis else []
    return SuiteReport(rows, told, _notes(asked, left_out), points)


def _canvases(asked: Sequence[TaskQuestions]) -> str:
    """The canvas of each task, in words."""
    if all(task.task in TASKS for task in asked):
        return f"{SHORT}, answers of several lines {LONG}"
    return ", ".join(str(length) for length in sorted({task.canvas for task in asked})) + " by task"


def _notes(asked: Sequence[TaskQuestions], left_out: Sequence[str]) -> list[str]:
    """Where the samples came from, and what is not measured."""
    notes = []
    if any(task.task not in TASKS for task in asked):
        made = [task.task for task in asked if task.source == MADE]
        read = [f"{task.task} ({task.source})" for task in asked if task.source != MADE]
        notes += [f"{MADE}: {', '.join(made)}."] if made else []
        notes += [f"from files: {', '.join(read)}."] if read else []
    else:
        notes.append(
            "the published tasks, with people's names and open text: not measured without a folder of their files; "
            "words_to_sentence and paraphrase here are judged by a small grammar of our own."
        )
    notes += [f"{task} is left out: it {not_made(task)}." for task in left_out]
    for metric, install in INSTALL.items():
        without = [task.task for task in asked if metric in task.missing]
        if without:
            notes.append(f"{metric} of {', '.join(without)}, and so the score: not measured; it needs {install}.")
    return notes


def decode_questions(
    lm: LanguageModel,
    spec: str,
    questions: Sequence[SuiteQuestion],
    canvas: int,
    batch_size: int,
    temperature: float,
    seed: int | None,
) -> list[SampleOutcome]:
    """Decode and judge. Question i draws with seed + i, whatever shares its batch. Raises the error of a failed request."""
    found: list[SampleOutcome] = []
    for start in range(0, len(questions), batch_size):
        part = questions[start : start + batch_size]
        replies = lm.generate(
            [question.prompt for question in part],
            method=spec,
            seed=[(seed or 0) + start + place for place in range(len(part))],
            max_new_tokens=canvas,
            temperature=temperature,
        )
        for question, reply in zip(part, replies, strict=True):
            if reply.error is not None:
                raise reply.error
            stats = reply.stats
            filled = sum(step >= 0 for step in stats.step_of)
            metrics = question.measure(reply.text)
            found.append(
                SampleOutcome(
                    metrics.pop(SCORE, None),
                    reply.text,
                    len(reply.token_ids),
                    filled or len(reply.token_ids),
                    sum(model.forwards for model in stats.models.values()),
                    sum(model.rows for model in stats.models.values()),
                    metrics,
                    None if question.edited is None else (question.edited, question.items(reply.text)),
                )
            )
    return found


def _row(
    entrant: SuiteEntrant, task: str, outcomes: Sequence[SampleOutcome], seconds: float, reference: float
) -> SuiteRow:
    count = len(outcomes)
    forwards = sum(outcome.forwards for outcome in outcomes)
    scores = [outcome.score for outcome in outcomes if outcome.score is not None]
    edits = [outcome.edited for outcome in outcomes if outcome.edited is not None and task != OVERALL]
    places = edited_places([problem for problem, _ in edits], [answer for _, answer in edits])
    metrics = outcomes[0].metrics if task != OVERALL else {}
    return SuiteRow(
        entrant.series,
        entrant.setting,
        entrant.spec,
        task,
        count,
        sum(scores) / len(scores) if scores else None,
        sum(outcome.positions for outcome in outcomes) / forwards,
        sum(outcome.content for outcome in outcomes) / forwards,
        forwards / count,
        sum(outcome.computed for outcome in outcomes) / count,
        sum(outcome.content for outcome in outcomes) / seconds if seconds else 0.0,
        reference / seconds if seconds else 0.0,
        places.bits if places.right else None,
        places.most if places.right else None,
        {name: sum(outcome.metrics[name] for outcome in outcomes) / count for name in metrics},
    )


def _oracle(
    entrants: Sequence[SuiteEntrant], tasks: Sequence[str], outcomes: dict[tuple[int, str], list[SampleOutcome]]
) -> list[SuiteRow]:
    """For each sample the loosest threshold of those with the best score, the strictest where none scores at all."""
    strict_first = sorted(
        (place for place, entrant in enumerate(entrants) if entrant.threshold is not None),
        key=lambda place: -(entrants[place].threshold or 0.0),
    )
    if len(strict_first) < 2:
        return []
    chosen: defaultdict[str, list[SampleOutcome]] = defaultdict(list)
    for task in tasks:
        for tried in zip(*(outcomes[place, task] for place in strict_first), strict=True):
            best = max(outcome.score or 0.0 for outcome in tried)
            chosen[task].append([outcome for outcome in tried if outcome.score == best][-1] if best else tried[0])
    whole = [outcome for task in tasks for outcome in chosen[task]]
    entrant = SuiteEntrant(ORACLE, "per sample", "")
    return [_row(entrant, group, own, 0.0, 0.0) for group, own in [*chosen.items(), (OVERALL, whole)]]
